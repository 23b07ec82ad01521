"""The search for settings: the same number of trials for every method, judged on D_f, D_c and D_v alone."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from curerec.bench.recipe import BenchRecipe
from curerec.config import Strict, parse
from curerec.evaluation.guard import nothing_happened
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.utility import nll
from curerec.methods import Task, search_of
from curerec.methods.stopping import CONFIDENCE, Stopping, Watch, auc_drop
from curerec.recommender.score import score
from curerec.records import Examples, Outcome

MAX_AUC_DROP = 0.002  # METHOD section 8: the utility guard on D_v
EPS = 1e-7

Settings = dict[str, Any]


def with_settings(config: Strict, settings: Mapping[str, Any]) -> Strict:
    """A configuration with some (dotted) keys replaced.

    Raises:
        ConfigError: a key is none of the configuration's.
    """
    values = config.model_dump(mode="json")
    for key, value in settings.items():
        *path, last = key.split(".")
        place = values
        for name in path:
            place = place[name]
        place[last] = value
    return parse(type(config), values, where=f"search, {', '.join(settings)}")


def grid_of(recipe: BenchRecipe, method: str) -> dict[str, list[Any]]:
    """What the search may choose from for a method: the recipe's grid, else the method's own."""
    given = recipe.search.grids.get(method) if recipe.search else None
    return search_of(method) if given is None else given


def candidates(config: Strict, grid: Mapping[str, Sequence[Any]], trials: int, name: str) -> list[Settings]:
    """The settings that are tried: none changed first, then distinct points of the grid, drawn at random.

    Args:
        config: as the recipe has it.
        grid: values by (dotted) key.
        trials: at most so many; fewer where the grid has no more.
        name: of the method; with the grid it settles the draw.

    Example:
        >>> from curerec.methods import UnlearnConfig
        >>> candidates(UnlearnConfig(lr=1.0), {"lr": [1.0, 2.0]}, 3, "npo")
        [{}, {'lr': 2.0}]
    """
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    order = np.random.default_rng([zlib.crc32(name.encode()), 17]).permutation(len(points))
    out, seen = [Settings()], {config.digest}
    for k in order:
        digest = with_settings(config, points[k]).digest
        if len(out) < trials and digest not in seen:
            out.append(points[k])
            seen.add(digest)
    return out


@dataclass(frozen=True)
class Before:
    """What trials of one request are compared with.

    Attributes:
        forget, valid: answer logits of the original on D_f and D_v, [n, 2].
        target: membership AUC to reach.
    """

    forget: np.ndarray
    valid: np.ndarray
    target: float

    @classmethod
    def of(cls, task: Task, target: Literal["expected"] | None = None) -> Before:
        """Score original and base once for all trials.

        Args:
            task: of the trials.
            target: None: the membership AUC of the base.
        """
        if target is None:
            aim = membership(task, task.base_model())
        else:  # one half of D_c is what D_f is held against, the other says what a retrain would answer
            aim = Watch(task, Stopping(check_size=max(11, len(task.control) // 2), target=target)).target
        return cls(task.forget_original, logits(task, task.original.model, task.valid), aim)


def logits(task: Task, model: Any, examples: Examples) -> np.ndarray:
    """Answer logits of a model, float32 [n, 2]."""
    return score(model, task.encode(examples), task.answers)


def membership(task: Task, model: Any, on_forget: np.ndarray | None = None) -> float:
    """AUC of the loss attack, all of D_f against all of D_c."""
    found = logits(task, model, task.forget) if on_forget is None else on_forget
    losses = [nll(found, task.forget.label), nll(logits(task, model, task.control), task.control.label)]
    member = np.r_[np.ones(len(losses[0])), np.zeros(len(losses[1]))]
    return float(roc_auc_score(member, -np.concatenate(losses)))


def judged(task: Task, before: Before, outcome: Outcome) -> dict[str, float | bool]:
    """What a setting is chosen by.

    ``gap``: membership AUC less the target. ``kl_valid``: mean KL(P_original || P) of the answers on D_v,
    nats. ``auc_drop`` on D_v with its standard error (DeLong).

    Args:
        task: without test examples or retrains; see :mod:`curerec.bench.blind`.
        before: of the same task.
        outcome: of the method.
    """
    rebuild = outcome.details.get("rebuild") or (lambda examples: examples)
    shown = logits(task, outcome.model, rebuild(task.forget))
    plain = shown if "rebuild" not in outcome.details else logits(task, outcome.model, task.forget)
    valid = logits(task, outcome.model, rebuild(task.valid))
    p, q = (np.clip(p_yes(z), EPS, 1 - EPS) for z in (before.valid, valid))
    margins = [z[:, 1] - z[:, 0] for z in (before.valid, valid)]
    drop, error = auc_drop(task.valid.label, *margins)
    auc = membership(task, outcome.model, plain)
    return {
        "membership_auc": auc,
        "membership_target": before.target,
        "gap": auc - before.target,
        "kl_valid": float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))),
        "auc_drop": drop,
        "auc_drop_se": error,
        "nothing_happened": nothing_happened(before.forget, shown),
    }


def merit(trial: Mapping[str, Any], tolerance: float) -> tuple[float, ...]:
    """Sorts trials, best first.

    Those that ran come before those that failed or did nothing; those that keep utility (the AUC on D_v is
    not shown to have fallen by more than 0.002, one-sided 95 %) before those that do not; those whose
    membership gap to the target is within ``tolerance``, on either side, before the others. Among the first
    the one nearest to the original's answers on D_v wins, among the others the one with the smallest gap.

    Source: this project; METHOD section 8 (what may be looked at).
    """
    if trial.get("failure") or trial["nothing_happened"]:
        return (1.0,)
    harmed = trial["auc_drop"] - norm.ppf(CONFIDENCE) * trial["auc_drop_se"] > MAX_AUC_DROP
    gap = abs(trial["gap"])
    closed = gap <= tolerance
    return (0.0, float(harmed), float(not closed), trial["kl_valid"] if closed else gap)


def choice(trials: Sequence[Mapping[str, Any]], tolerance: float) -> Mapping[str, Any]:
    """The best trial; the earliest of equals, so the recipe's own settings stand where nothing beats them."""
    return min(trials, key=lambda trial: (merit(trial, tolerance), trial["number"]))
