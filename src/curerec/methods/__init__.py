"""Unlearning methods by name: one folder and one line here each; those of other packages by entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curerec.config import Strict
from curerec.methods.apa import ApaConfig, apa
from curerec.methods.bad_teacher import BadTeacherConfig, bad_teacher
from curerec.methods.cagrad import CagradConfig, cagrad
from curerec.methods.cau import CauConfig, cau
from curerec.methods.cragru import CragruConfig, cragru
from curerec.methods.cure import CureConfig, cure
from curerec.methods.e2urec import E2urecConfig, e2urec
from curerec.methods.finetune import FinetuneConfig, finetune
from curerec.methods.grad_ascent import GradAscentConfig, ga_kl, grad_ascent
from curerec.methods.grad_diff import GradDiffConfig, grad_diff
from curerec.methods.gru import GruConfig, gru
from curerec.methods.installed import installed
from curerec.methods.label_flip import LabelFlipConfig, label_flip
from curerec.methods.loop import LoopConfig
from curerec.methods.ngdiff import NgdiffConfig, ngdiff
from curerec.methods.npo import npo_uniform
from curerec.methods.pcgrad import PcgradConfig, pcgrad
from curerec.methods.random_groups import random_groups
from curerec.methods.random_modules import random_modules
from curerec.methods.receraser import ReceraserConfig, receraser
from curerec.methods.retrain import retrain
from curerec.methods.rome import RomeConfig, rome
from curerec.methods.scrub import ScrubConfig, scrub
from curerec.methods.simnpo import SimnpoConfig, simnpo
from curerec.methods.sisa import SisaConfig, sisa
from curerec.methods.task import Task
from curerec.methods.task_vector import TaskVectorConfig, task_vector
from curerec.methods.unlearn import UnlearnConfig
from curerec.methods.weighted_sum import WeightedSumConfig, weighted_sum
from curerec.methods.wise import WiseConfig, wise
from curerec.records import Outcome

Run = Callable[[Task, Any], Outcome]

#: Name -> (function, its configuration class or None).
METHODS: dict[str, tuple[Run, type[Strict] | None]] = {
    "cure": (cure, CureConfig),
    "random_modules": (random_modules, CureConfig),
    "random_groups": (random_groups, CureConfig),
    "finetune": (finetune, FinetuneConfig),
    "grad_ascent": (grad_ascent, GradAscentConfig),
    "grad_diff": (grad_diff, GradDiffConfig),
    "ga_kl": (ga_kl, UnlearnConfig),
    "npo": (npo_uniform, UnlearnConfig),
    "simnpo": (simnpo, SimnpoConfig),
    "label_flip": (label_flip, LabelFlipConfig),
    "bad_teacher": (bad_teacher, BadTeacherConfig),
    "scrub": (scrub, ScrubConfig),
    "task_vector": (task_vector, TaskVectorConfig),
    "e2urec": (e2urec, E2urecConfig),
    "weighted_sum": (weighted_sum, WeightedSumConfig),
    "pcgrad": (pcgrad, PcgradConfig),
    "cagrad": (cagrad, CagradConfig),
    "gru": (gru, GruConfig),
    "ngdiff": (ngdiff, NgdiffConfig),
    "cau": (cau, CauConfig),
    "rome": (rome, RomeConfig),
    "wise": (wise, WiseConfig),
    "sisa": (sisa, SisaConfig),
    "receraser": (receraser, ReceraserConfig),
    "apa": (apa, ApaConfig),
    "cragru": (cragru, CragruConfig),
    "retrain": (retrain, None),
}
#: Those of this package; what others have installed comes after them and has to be named to be run.
SHIPPED = tuple(METHODS)
METHODS.update(installed(SHIPPED))

#: Controls of ``cure``, which take its settings: random groups, and random weights in them or not.
CONTROLS = ("random_modules", "random_groups")
#: What answers afterwards is more than the weights of one model: it can be measured, and no folder holds it.
UNSAVED = ("wise", "sisa", "receraser", "apa", "cragru")
#: Whose first gradient is rounding: what damping is a multiple of.
FROM_NOTHING = ("scrub",)
#: Methods by steps whose forget loss cannot rest: it is all there is, in side weights, or has its own rate.
RESTLESS = ("grad_ascent", "wise", "ngdiff")


def search_of(name: str) -> dict[str, list[Any]]:
    """A method's search grid: values by (dotted) key of its configuration; empty where none is declared.

    All that take steps with AdamW may damp it, as ``cure`` does. Those that can rest their forget loss may
    also let the rate fall to 0 over all their steps, instead of stopping at the first look that finds the gap
    closed; the others would go on past it.
    """
    function, config = METHODS[name]
    module = sys.modules[function.__module__]
    own = getattr(module, f"SEARCH_{name.upper()}", None) or getattr(module, "SEARCH", {})
    if own and config is not None and issubclass(config, LoopConfig):
        more: dict[str, list[Any]] = {}
        if name not in RESTLESS:
            more["schedule"] = ["constant", "linear"]
        # NGDiff is plain descent whatever its configuration says.
        adam = config.model_fields["optimizer"].default == "adamw" and name != "ngdiff"
        if adam and name not in FROM_NOTHING:
            more["damping"] = [0.0, 0.1]
        return {**own, **more}
    return own


def card_of(name: str) -> str:
    """A method's card, Markdown: ``card.md`` beside its module.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = Path(str(sys.modules[METHODS[name][0].__module__].__file__)).parent
    return (folder / "card.md").read_text(encoding="utf-8")


__all__ = [
    "CONTROLS",
    "METHODS",
    "SHIPPED",
    "UNSAVED",
    "CureConfig",
    "Task",
    "UnlearnConfig",
    "card_of",
    "search_of",
]
