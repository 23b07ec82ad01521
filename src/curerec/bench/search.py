"""The search for settings: the same number of trials for every method, judged on D_f, D_c and D_v alone."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from curerec.bench.recipe import BenchRecipe
from curerec.config import Strict, parse
from curerec.delong import auc_drop
from curerec.errors import ConfigError
from curerec.evaluation.guard import nothing_happened
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.utility import ece_rise, nll
from curerec.evaluation.verdict import Limits
from curerec.methods import CONTROLS, Task, search_of
from curerec.methods.expected import clusters, expected_auc, pool
from curerec.methods.stopping import CONFIDENCE
from curerec.recommender.score import score
from curerec.records import Examples, Outcome

CALIBRATION_DRAWS = 200  # of the bootstrap of its rise
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
        place: Any = values
        for name in path:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            mend = f"Choose from {', '.join(values)}, or what one of them holds"
            raise ConfigError(f"{'.'.join(path)} holds no settings", where=f"search, {key}", mend=mend)
        place[last] = value
    return parse(type(config), values, where=f"search, {', '.join(settings)}", tried=True)


def grid_of(recipe: BenchRecipe, method: str) -> dict[str, list[Any]]:
    """What the search may choose from for a method: the recipe's grid, else the method's own.

    A control of ``cure`` for which the recipe has none is searched on that of ``cure``.
    """
    given = recipe.search.grids.get(method) if recipe.search else None
    if given is None and method in CONTROLS:
        return grid_of(recipe, "cure")
    return search_of(method) if given is None else given


def ends(settings: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """The chosen numbers that are the largest or smallest on offer: beyond them might be better ones.

    A smallest value of 0 is no such end, since nothing lies beyond it.

    Args:
        settings: that the search chose; keys that it left as the recipe has them are not among them.
        grid: values by (dotted) key.

    Example:
        >>> grid = {"lr": [1e-4, 3e-4, 1e-3], "damping": [0.0, 0.1], "schedule": ["constant", "linear"]}
        >>> ends({"lr": 1e-3, "damping": 0.0, "schedule": "linear"}, grid)
        {'lr': 0.001}
    """
    found = {}
    for key, value in settings.items():
        numbers = {v for v in grid.get(key, ()) if isinstance(v, int | float) and not isinstance(v, bool)}
        if len(numbers) > 1 and value in (min(numbers), max(numbers)) and value != 0:
            found[key] = float(value)
    return found


def candidates(config: Strict, grid: Mapping[str, Sequence[Any]], trials: int) -> list[Settings]:
    """The settings that are tried: none changed first, then distinct points of the grid, drawn at random.

    They are drawn so that few of them show each value of each key, and most pairs of values: of a grid of
    many keys as many points drawn alike would leave whole rates untried. The draw is settled by the values
    of the grid alone: methods that are searched on one grid, under whatever keys, are tried with the same
    points.

    Args:
        config: as the recipe has it.
        grid: values by (dotted) key.
        trials: at most so many; fewer where the grid has no more.

    Example:
        >>> from curerec.methods import UnlearnConfig
        >>> candidates(UnlearnConfig(lr=1.0), {"lr": [1.0, 2.0]}, 3)
        [{}, {'lr': 2.0}]
    """
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    several = [key for key, values in grid.items() if len(values) > 1]
    drawn_by = json.dumps([list(grid[key]) for key in several]).encode()
    order = np.random.default_rng([zlib.crc32(drawn_by), 17]).permutation(len(points))
    out, seen = [Settings()], {config.digest}
    for point in _covering([points[k] for k in order], several):
        if len(out) >= trials:
            break
        digest = with_settings(config, point).digest
        if digest not in seen:
            out.append(point)
            seen.add(digest)
    return out


def _covering(points: list[Settings], keys: Sequence[str]) -> Iterator[Settings]:
    """The points in another order: next is the first that shows most values and pairs not yet seen.

    Source: Cohen et al. 1997 (AETG), greedy covering designs; here over the points of a grid, and begun anew
        when all pairs have been seen.
    """

    def shown(point: Settings) -> set[Any]:
        values = [(key, json.dumps(point[key])) for key in keys]
        return {*values, *itertools.combinations(values, 2)}

    left = [(point, shown(point)) for point in points]
    new = set[Any]().union(*(pairs for _, pairs in left))
    while left:
        best = max(range(len(left)), key=lambda k: len(left[k][1] & new))
        point, pairs = left.pop(best)
        new -= pairs
        if not any(pairs & new for _, pairs in left):
            new = set[Any]().union(*(pairs for _, pairs in left))
        yield point


@dataclass(frozen=True)
class Before:
    """What trials of one request are compared with.

    Attributes:
        forget, valid: answer logits of the original on D_f and D_v, [n, 2].
        references: places in D_c of the examples that D_f is held against: all of them, or each half in turn.
        targets: membership AUC to reach against each.
    """

    forget: np.ndarray
    valid: np.ndarray
    references: tuple[np.ndarray, ...]
    targets: tuple[float, ...]

    @classmethod
    def of(cls, task: Task, target: Literal["expected"] | None = None) -> Before:
        """Score original and base once for all trials.

        What a retrain is expected to have is learned from other people's ratings than those that D_f is held
        against, and holds against these alone; so each half of the people of D_c stands in turn for either.

        Args:
            task: of the trials.
            target: None: the membership AUC of the base.
        """
        places = np.arange(len(task.control))
        base, original = (
            (task.forget_base, task.base_logits(task.control)),
            (task.forget_original, task.original_logits(task.control)),
        )
        references: tuple[np.ndarray, ...] = (places,)
        if target is not None:
            half = pool(clusters(task)[task.control.target], max(1, len(places) // 2))
            references = tuple(r for r in (half, np.setdiff1d(places, half)) if len(r))
        targets = []
        for reference in references:
            aims = [membership(task, *said, reference) for said in (base, original)]
            if target is not None:
                label = task.control.label[reference]
                losses = nll(base[1][reference], label), nll(original[1][reference], label)
                aims[0] = expected_auc(task, reference, losses, (aims[0], aims[1]))
            targets.append(aims[0])
        valid = logits(task, task.original.model, task.valid)
        return cls(task.forget_original, valid, references, tuple(targets))

    @property
    def target(self) -> float:
        """Membership AUC to reach, mean over the references."""
        return float(np.mean(self.targets))

    def membership(self, task: Task, on_forget: np.ndarray, on_control: np.ndarray) -> float:
        """AUC of the loss attack on a model, mean over the references.

        Args:
            task: of the trials.
            on_forget, on_control: its answer logits on all of D_f and of D_c, [n, 2].
        """
        return float(np.mean([membership(task, on_forget, on_control, r) for r in self.references]))


def logits(task: Task, model: Any, examples: Examples) -> np.ndarray:
    """Answer logits of a model, float32 [n, 2]."""
    return score(model, task.encode(examples), task.answers)


def membership(task: Task, on_forget: np.ndarray, on_control: np.ndarray, reference: np.ndarray) -> float:
    """AUC of the loss attack, all of D_f against some of D_c, from answer logits on all of both."""
    label = task.control.label[reference]
    losses = [nll(on_forget, task.forget.label), nll(on_control[reference], label)]
    member = np.r_[np.ones(len(losses[0])), np.zeros(len(losses[1]))]
    return float(roc_auc_score(member, -np.concatenate(losses)))


def judged(task: Task, before: Before, outcome: Outcome) -> dict[str, float | bool]:
    """What a setting is chosen by.

    ``gap``: membership AUC less the target. ``kl_valid``: mean KL(P_original || P) of the answers on D_v,
    nats. ``auc_drop`` and ``ece_rise`` on D_v with their standard errors (DeLong; bootstrap over users).

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
    users = task.data.user_code[task.valid.target]
    rise = ece_rise(before.valid, valid, task.valid.label, groups=users, draws=CALIBRATION_DRAWS)
    auc = before.membership(task, plain, logits(task, outcome.model, task.control))
    return {
        "membership_auc": auc,
        "membership_target": before.target,
        "gap": auc - before.target,
        "kl_valid": float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))),
        "auc_drop": drop,
        "auc_drop_se": error,
        "ece_rise": rise["rise"],
        "ece_rise_se": rise["se"],
        "nothing_happened": nothing_happened(before.forget, shown),
    }


def merit(trial: Mapping[str, Any], tolerance: float) -> tuple[float, ...]:
    """Sorts trials, best first.

    Those that ran come before those that failed or did nothing. Of the others first counts by how much they
    miss what a result is held to, each in units of what is allowed, added up:

    - the membership gap to the target, on either side: ``tolerance``;
    - the fall of the AUC on D_v that is shown (one-sided 95 %), and the rise of the calibration error there:
      what the verdict allows.

    So a setting that closes the gap by destroying the model does not win over one that leaves a part of it,
    nor does one that does next to nothing win over a setting that costs a little. Among those that miss
    nothing the one nearest to the original's answers on D_v wins.

    Source: this project; METHOD section 8 (what may be looked at). Limits:
        :class:`curerec.evaluation.verdict.Limits`.
    """
    if trial.get("failure") or trial["nothing_happened"]:
        return (1.0, 0.0, 0.0)
    limits = Limits()
    sure = norm.ppf(CONFIDENCE)
    missed = max(0.0, abs(trial["gap"]) - tolerance) / max(tolerance, EPS)
    for name, allowed in (("auc_drop", limits.auc_drop), ("ece_rise", limits.ece_rise)):
        change, error = (_number(trial[key]) for key in (name, f"{name}_se"))
        missed += max(0.0, change - sure * error - allowed) / allowed
    return (0.0, missed, trial["kl_valid"])


def _number(value: float | None) -> float:
    """0 for what is no number, which a stored trial has as null."""
    return value if value is not None and np.isfinite(value) else 0.0


def choice(trials: Sequence[Mapping[str, Any]], tolerance: float) -> Mapping[str, Any]:
    """The best trial; the earliest of equals, so the recipe's own settings stand where nothing beats them."""
    return min(trials, key=lambda trial: (merit(trial, tolerance), trial["number"]))
