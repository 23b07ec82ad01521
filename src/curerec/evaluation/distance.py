"""How far a model's answers lie from the retrained models': on D_f and D_t, and over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from curerec.evaluation.bootstrap import enough_users, mean_interval
from curerec.evaluation.divergence import jeffreys_half_each, jsd_each, jsd_full_each, l2_each
from curerec.evaluation.metric import Metric, Value
from curerec.evaluation.scene import Scene

Each = Callable[[np.ndarray, np.ndarray], np.ndarray]


def answers_apart(each: Each, part: str) -> Callable[[Scene], Value]:
    """Mean over examples and retrained models of a distance of P(yes), with an interval over users."""

    def compute(scene: Scene) -> Value:
        ground = scene.ground
        mine = ground.p_yes(scene.subject, part)
        apart = np.mean([each(mine, ground.p_yes(r, part)) for r in scene.retrains], axis=0)
        return mean_of(apart, ground.user(part), scene)

    return compute


def words_apart(part: str) -> Callable[[Scene], Value]:
    """The same over the whole vocabulary at the answer position, of at most 512 examples."""

    def compute(scene: Scene) -> Value:
        ground = scene.ground
        mine = ground.vocabulary(scene.subject, part)
        apart = np.mean([jsd_full_each(mine, ground.vocabulary(r, part)) for r in scene.retrains], axis=0)
        return mean_of(apart, ground.user(part)[ground.spread(part)], scene)

    return compute


def mean_of(each: np.ndarray, user: np.ndarray, scene: Scene) -> Value:
    """Mean of one number an example, with a bootstrap interval over whole users.

    The scatter of the retrained models is not in the interval: they are taken as given.
    """
    low, high = None, None
    if enough_users(user):
        low, high = mean_interval(each, draws=scene.ground.draws, seed=scene.ground.seed, groups=user)
    return Value(float(each.mean()), low, high, n=len(each))


_JSD = "mean of (KL(p|m) + KL(q|m)) / 2, m = (p + q) / 2, over {No, Yes} renormalised"
_JEFFREYS = "mean of (KL(p|q) + KL(q|p)) / 2 over {No, Yes}, p and q clipped to [1e-7, 1 - 1e-7]"
_L2 = "mean of |(1 - p, p) - (1 - q, q)|_2 = sqrt(2) |p - q|"
_PRINTED = "E2URec, evaluate.py, printed there under the name JSD (about 4 times the JSD for small gaps)"


def _two(name: str, unit: str, formula: str, source: str, each: Each) -> dict[str, Metric]:
    return {
        key: Metric(
            key,
            1,
            unit,  # type: ignore[arg-type]
            "lower",
            ("retrain",),
            f"{formula}; on {on}",
            source,
            answers_apart(each, part),
        )
        for key, part, on in ((name, "forget", "D_f"), (f"{name}_test", "test", "D_t"))
    }


ANSWERS = {
    **_two("jsd", "nats", _JSD, "Lin 1991", jsd_each),
    **_two("jeffreys_half", "nats", _JEFFREYS, _PRINTED, jeffreys_half_each),
    **_two("l2", "probability", _L2, "E2URec, evaluate.py (there over the vocabulary)", l2_each),
}
WORDS = {
    key: Metric(
        key,
        2,  # 1: of a model that rebuilds histories, with the histories as they are
        "nats",
        "lower",
        ("retrain", "model"),
        f"jsd over the full vocabulary at the answer position; on at most 512 examples of {on}",
        "Lin 1991",
        words_apart(part),
        cost="scoring",
    )
    for key, part, on in (("jsd_full", "forget", "D_f"), ("jsd_full_test", "test", "D_t"))
}
