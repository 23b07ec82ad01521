"""Is one method nearer to the retrains than another? Student's t over seeds, pairs of them.

The same of the excess: how much nearer on the deleted data than on data that nobody was trained on.

Quantiles of a bootstrap over three or five seeds reject equals two to four times as often as they say: all
resamples agree as soon as all seeds do. So the error is that of the scatter over seeds, which has the noise
of the examples in it, and no smaller than what a bootstrap over examples finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64
from scipy.stats import t as student

from curerec.evaluation.divergence import jsd_each

LEAST_SEEDS = 3  # PROTOCOL section 3
#: Where answers to single examples are not at hand: three seeds that agree by luck have next to no scatter,
#: and nothing then holds the error to that of the examples.
LEAST_SEEDS_ALONE = 5
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
        low, high: 95 % interval.
        p: two-sided.
        seeds: that both have.
        by: ``examples``: the error is no smaller than that of resampled examples; ``rows``: of seeds alone.
    """

    difference: float
    low: float
    high: float
    p: float
    seeds: int
    by: str = "examples"

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        return error_of(self.low, self.high, self.seeds)


def error_of(low: float, high: float, seeds: int) -> float:
    """The standard error behind a 95 % interval of :class:`Compared`.

    Example:
        >>> round(error_of(-0.4303, 0.4303, 3), 3)
        0.1
    """
    return (high - low) / 2 / float(student.ppf(0.975, seeds - 1))


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

    The standard error is the larger of two: that of a ratio of means over seeds, and the spread of draws of
    examples within every seed, where both methods, the floor and the ceiling are taken of the same examples,
    so that what is hard for both cancels. (Draws of seeds *and* examples would count their noise twice: the
    scatter of the seeds has it in it.) It is held against a t with one degree of freedom less than seeds.

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

    Source: PROTOCOL section 3; Cochran 1977, section 6.4 (error of a ratio of means); Davison and Hinkley
    1997, section 3.8 (what resampling at two levels estimates).
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
    gaps = _gap(np.mean(resampled, 0).T)
    if not np.isfinite(gaps).all():
        return None
    return compared_means(point, least_error=float(np.std(gaps, ddof=1)))


def compared_means(means: Sequence[np.ndarray], *, least_error: float | None = None) -> Compared | None:
    """The same from the means of each seed alone, where answers to single examples were not kept.

    Args:
        means: of each seed that both have: [ours, theirs, floor, ceiling], nats.
        least_error: that the standard error is not to fall below; None: there is none to hold it to.

    Returns:
        None with fewer than three seeds, five without a least error, or where nothing was there to forget.

    Source: Cochran 1977, section 6.4 (error of a ratio of means).
    """
    if len(means) < (LEAST_SEEDS_ALONE if least_error is None else LEAST_SEEDS):
        return None
    values = np.asarray(means, float)
    difference = float(_gap(values.mean(0)))
    if not np.isfinite(difference):
        return None
    ours, theirs, floor, ceiling = values.T
    left = (ours - theirs - difference * (ceiling - floor)) / (ceiling - floor).mean()
    error = max(float(np.std(left, ddof=1) / np.sqrt(len(left))), least_error or 0.0)
    return _told(difference, error, len(left), "rows" if least_error is None else "examples")


def _told(difference: float, error: float, seeds: int, by: str) -> Compared:
    """Interval and p of a difference whose standard error is of so many seeds."""
    half = float(student.ppf(0.975, seeds - 1)) * error
    p = 2 * float(student.sf(abs(difference) / error, seeds - 1)) if error > 0 else float(difference == 0)
    return Compared(difference, difference - half, difference + half, p, seeds, by)


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
