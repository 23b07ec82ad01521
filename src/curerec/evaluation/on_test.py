"""Utility on the test examples: on all, without the forgotten users' rows, and by the users' activity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from curerec.evaluation.auc import auc_interval
from curerec.evaluation.bootstrap import enough_users, interval, mean_interval
from curerec.evaluation.inputs import equal_mass, labels, margin, p_yes
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Scene
from curerec.evaluation.utility import ece, ece_draws, nll, utility

DRAWS = 200  # of an interval of utility: 29 of them a model
ALL_TOUCHED = "every test example is of a user of whom something was deleted"

#: Given the scene: which test examples, bool [n].
Choice = Callable[[Scene], np.ndarray]


def everyone(scene: Scene) -> np.ndarray:
    """All test examples."""
    return np.ones(len(scene.split.test), bool)


def untouched(scene: Scene) -> np.ndarray:
    """Test examples of users of whom nothing was deleted.

    Raises:
        CannotError: there are none (a request for popular items touches everybody).
    """
    data = scene.ground.data
    touched = np.unique(data.user_code[scene.split.deleted])
    chosen = ~np.isin(scene.ground.user("test"), touched)
    if not chosen.any():
        raise CannotError(ALL_TOUCHED)
    return chosen


def quintile(k: int) -> Choice:
    """Test examples of the k-th fifth (1: least active) by their user's number of interactions.

    Fifths of the examples; equal activity is never split.
    """

    def chosen(scene: Scene) -> np.ndarray:
        counts = np.bincount(scene.ground.data.user_code)
        return equal_mass(counts[scene.ground.user("test")].astype(float), 5) == k - 1

    return chosen


def measured(kind: str, choice: Choice, part: str = "test") -> Callable[[Scene], Value]:
    """How a utility metric is computed on some examples, with an interval over users."""

    def compute(scene: Scene) -> Value:
        ground = scene.ground
        chosen = choice(scene)
        logits, label = ground.logits(scene.subject, part)[chosen], ground.part(part).label[chosen]
        user = ground.user(part)[chosen]
        found = utility(logits, label)
        if reason := found["missing"].get(kind):
            raise CannotError(reason)
        low, high = None, None
        if enough_users(user):
            low, high = _interval(kind, logits, label, user, min(DRAWS, ground.draws), ground.seed)
        return Value(found[kind], low, high, n=int(chosen.sum()))

    return compute


def _interval(
    kind: str, logits: np.ndarray, label: np.ndarray, user: np.ndarray, draws: int, seed: int
) -> tuple[float | None, float | None]:
    z = margin(logits)
    y = labels(label, len(z))
    if kind == "auc":
        if not (enough_users(user[y]) and enough_users(user[~y])):
            return None, None  # rows would be drawn, and the interval shown as one over users
        return auc_interval(z[y], z[~y], draws=draws, seed=seed, groups=(user[y], user[~y]))
    if kind == "ece":  # the bins stay; draws scatter about a mean above the value, which is taken off them
        values = ece_draws(p_yes(z), y, draws=draws, seed=seed, groups=user)
        return interval(np.clip(values - values.mean() + ece(p_yes(z), y), 0, None))
    each = nll(z, y) if kind == "log_loss" else ((z > 0) == y).astype(float)
    return mean_interval(each, draws=draws, seed=seed, groups=user)


_KINDS = {
    "auc": ("share", "higher", "chance that a Yes outranks a No, ties half", "textbook"),
    "acc": ("share", "higher", "mean [(p > 0.5) = y]", "E2URec, evaluate.py"),
    "log_loss": ("nats", "lower", "mean -log p(label)", "textbook"),
    "ece": (
        "probability",
        "lower",
        "sum over 15 equal-mass bins of P(yes): share of rows x |mean p - mean y|; ties share a bin",
        "Guo et al. 2017, arXiv 1706.04599; equal mass as in Nguyen and O'Connor 2015",
    ),
}


def _metrics(suffix: str, where: str, choice: Choice) -> dict[str, Metric]:
    out = {}
    for kind, (unit, better, formula, source) in _KINDS.items():
        name = f"test_{kind}{suffix}"
        text = f"{formula}; {where}"
        # 1: the interval of an ECE had the bias of a mean of |.|, that of an AUC could be over rows.
        version = 2 if kind in ("ece", "auc") else 1
        out[name] = Metric(name, version, unit, better, ("labels",), text, source, measured(kind, choice))  # type: ignore[arg-type]
    return out


ON_TEST = _metrics("", "on D_t", everyone)
ON_OTHERS = _metrics("_others", "on D_t without users of whom something was deleted", untouched)
BY_QUINTILE = {
    name: metric
    for k in range(1, 6)
    for name, metric in _metrics(
        f"_q{k}", f"on fifth {k} of D_t by the user's activity (1: least)", quintile(k)
    ).items()
}
VALID_AUC = Metric(
    "valid_auc",
    2,  # 1: its interval could be over rows
    "share",
    "higher",
    ("labels",),
    "chance that a Yes outranks a No, ties half; on D_v",
    "textbook",
    measured("auc", lambda scene: np.ones(len(scene.split.valid), bool), "valid"),
)
