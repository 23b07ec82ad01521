"""Synthetic answers of an original with a planted memory, of an honest unlearned model, and of fakes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from curerec.evaluation.advantage import advantage
from curerec.evaluation.answers import answers
from curerec.evaluation.auc import Z95, auc, auc_se
from curerec.evaluation.guard import probes_changed
from curerec.evaluation.left_alone import Deleted, left_alone
from curerec.evaluation.utility import auc_drop, ece_rise, nll, utility
from curerec.evaluation.verdict import verdict

SETS = ("forget", "control", "valid")
PER_PERSON = 10  # deleted ratings


@dataclass(frozen=True)
class Model:
    """Margins z_yes - z_no of one model on the three sets, [n] each."""

    forget: np.ndarray
    control: np.ndarray
    valid: np.ndarray

    def mapped(self, change) -> Model:
        return Model(*(change(getattr(self, name)) for name in SETS))


@dataclass(frozen=True)
class World:
    label: Model
    clean: Model  # calibrated margins of a model that saw none of the three sets
    original: Model  # the same, with the labels of the forget set remembered
    rng: np.random.Generator


def world(seed: int, *, n: int = 1500, memory: float = 0.8, confidence: float = 1.0) -> World:
    """Labels drawn from the clean model's own P(yes); memory adds to the margin towards the label."""
    rng = np.random.default_rng(seed)
    clean = Model(*(rng.normal(0.4, 1.3, n) for _ in SETS))
    label = clean.mapped(lambda z: (rng.random(n) < expit(z)).astype(int))
    original = replace(clean, forget=clean.forget + memory * (2 * label.forget - 1))
    return World(label, clean, original.mapped(lambda z: confidence * z), rng)


def honest(w: World) -> Model:
    """The memory is gone, everything else moved a little."""
    return w.clean.mapped(lambda z: z + w.rng.normal(0, 0.03, len(z)))


def _told(w: World, model: Model) -> tuple[np.ndarray, np.ndarray]:
    return -nll(model.forget, w.label.forget), -nll(model.control, w.label.control)


def _known(w: World, model: Model) -> tuple[np.ndarray, np.ndarray]:
    return -nll(model.control, w.label.control), -nll(model.valid, w.label.valid)


def judged(w: World, new: Model) -> dict:
    """The verdict, every number measured as the pipeline would (analytic error: cheap)."""
    worse = ece_rise(w.original.valid, new.valid, w.label.valid, draws=200)
    lost = auc_drop(w.original.valid, new.valid, w.label.valid, draws=100)
    said = answers(new.forget, w.label.forget, new.control, w.label.control)
    told = advantage(*(-x for x in _told(w, new)), draws=100)
    sides = [(getattr(w.original, part), getattr(new, part)) for part in ("forget", "control")]
    forget, control = (np.arange(len(side[0])) // PER_PERSON for side in sides)
    left = left_alone(*sides, [Deleted(np.arange(len(forget)), forget, control)], draws=5)
    rise = auc(*_known(w, new)) - auc(*_known(w, w.original))
    prompts = [np.concatenate([m.forget, m.valid]) for m in (w.original, new)]
    return verdict(
        probes_changed=probes_changed(*prompts),
        membership_auc=auc(*_told(w, new)),
        membership_error=Z95 * auc_se(*_told(w, new)),
        membership_original=auc(*_told(w, w.original)),
        advantage=told["value"],
        advantage_error=told["error"],
        control_rise=rise,
        control_rise_se=0.003,
        left_share=left["share"],
        left_limit=left["limit"],
        auc_drop=lost["drop"],
        auc_drop_se=lost["se"],
        auc_original=utility(w.original.valid, w.label.valid)["auc"],
        ece_rise=worse["rise"],
        ece_rise_se=worse["se"],
        answers_gap=said["gap"],
        answers_se=said["se"],
        answers_control=said["control"],
    )


def outcome(result: dict) -> dict[str, bool | None]:
    return {check["name"]: check["passed"] for check in result["checks"]}
