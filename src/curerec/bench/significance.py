"""Is one method nearer to the retrains than another? A paired bootstrap over seeds and examples.

The same of the excess: how much nearer on the deleted data than on data that nobody was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from curerec.evaluation.divergence import jsd_each

LEAST_SEEDS = 3  # PROTOCOL section 3
LEVEL = 0.05


@dataclass(frozen=True)
class Yard:
    """What residuals of one seed are measured with, by example of D_f or of D_c.

    Attributes:
        floor: divergence between retrains, mean over their pairs, nats [n].
        ceiling: of the original from the retrains, nats [n].
        retrain: P(yes) of the retrains, [retrains, n].
    """

    floor: np.ndarray
    ceiling: np.ndarray
    retrain: np.ndarray

    @classmethod
    def of(cls, original: np.ndarray, retrain: np.ndarray) -> Yard:
        """From P(yes) of the original [n] and of two or more retrains [retrains, n]."""
        floor = np.mean([jsd_each(a, b) for a, b in combinations(retrain, 2)], axis=0)
        return cls(floor, jsd_each(retrain, original[None]).mean(0), retrain)

    def distance(self, p: np.ndarray) -> Float64[np.ndarray, " n"]:
        """Divergence of a model from the retrains, mean over them, nats [n]."""
        return jsd_each(self.retrain, p[None]).mean(0)


@dataclass(frozen=True)
class Compared:
    """A method's residual, or its excess, less another's.

    Attributes:
        difference: over all seeds; below 0 the first is nearer to the retrains.
        low, high: 95 % interval of the resamples.
        p: two-sided.
        seeds: that both have.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int


Answers = Mapping[int, np.ndarray]


def compared(
    yards: Mapping[int, Yard],
    ours: Answers,
    theirs: Answers,
    *,
    less: tuple[Mapping[int, Yard], Answers, Answers] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Compared | None:
    """The difference of two methods' residuals, or of their excess residuals, with its interval.

    A draw takes seeds with replacement and, within each, examples with replacement; both methods, the floor
    and the ceiling are taken of the same examples, so what is hard for both cancels.

    ``residual = (mean d - mean floor) / (mean ceiling - mean floor)``, means over all drawn seeds: the floor
    of a single seed is one pair of retrains, and its ratio alone may say nothing. Of the excess, each of the
    three is that on D_f less that on D_c.

    Args:
        yards, ours, theirs: by seed; P(yes) on D_f, [n] in the yard's order.
        less: the same three on D_c: compares the excess.
        draws: resamples.
        seed: of the draws.

    Returns:
        None with fewer than three seeds in common, or where a resample leaves no distance to forget.

    Source: PROTOCOL section 3; Efron and Tibshirani 1993, chapter 16 (two-stage resampling).
    """
    sides = [(yards, ours, theirs, 1), *([(*less, -1)] if less else [])]
    common = sorted(set.intersection(*(set(one) for *parts, _ in sides for one in parts)))
    if len(common) < LEAST_SEEDS:
        return None
    rng = np.random.default_rng(seed)
    point, resampled = [], []
    for s in common:
        means, drawn = np.zeros(4), np.zeros((draws, 4))
        for yard_of, a, b, sign in sides:
            yard = yard_of[s]
            columns = np.stack([yard.distance(a[s]), yard.distance(b[s]), yard.floor, yard.ceiling])  # [4, n]
            n = columns.shape[1]
            weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(draws)])
            means += sign * columns.mean(1)
            drawn += sign * (weights @ columns.T / n)
        point.append(means)
        resampled.append(drawn)
    chosen = rng.integers(0, len(common), (draws, len(common)))
    gaps = _gap(np.stack(resampled)[chosen, np.arange(draws)[:, None]].mean(1).T)
    if not np.isfinite(gaps).all():
        return None
    low, high = np.quantile(gaps, [0.025, 0.975])
    tail = min((gaps >= 0).sum(), (gaps <= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (draws + 1))
    return Compared(float(_gap(np.mean(point, 0))), float(low), float(high), float(p), len(common))


def _gap(means: np.ndarray) -> np.ndarray:
    """Difference on the scale from floor to ceiling, from means of [ours, theirs, floor, ceiling]."""
    ours, theirs, floor, ceiling = means
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(ceiling > floor, ceiling - floor, np.nan)
    return np.asarray((ours - theirs) / scale)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for how many were looked at.

    Source: Holm 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    worst, out = 0.0, [0.0] * len(p)
    for rank, k in enumerate(order):
        worst = max(worst, min(1.0, p[k] * (len(p) - rank)))
        out[int(k)] = round(worst, 12)
    return out
