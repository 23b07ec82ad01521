"""Area under the ROC curve of two sets of scores: value, standard error, bootstrap interval."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from curerec.errors import ConfigError
from curerec.evaluation.bootstrap import Groups, interval, resamples
from curerec.evaluation.inputs import numbers

Z95 = 1.959964  # two-sided 95 % point of the normal distribution


def _shares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each of a: share of b below it, ties counted half. float64 [len(a)]."""
    ordered = np.sort(b)
    return (np.searchsorted(ordered, a, "left") + np.searchsorted(ordered, a, "right")) / (2 * len(b))


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counted half.

    ``AUC = mean_ij ([s_i > s_j] + [s_i = s_j] / 2)``

    Args:
        positive: scores, [m], m >= 1.
        negative: scores, [n], n >= 1.

    Raises:
        ConfigError: an empty set, or scores that are not finite.

    Example:
        >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        0.875
    """
    return float(_shares(numbers(positive, "positive scores"), numbers(negative, "negative scores")).mean())


def auc_se(positive: np.ndarray, negative: np.ndarray) -> float:
    """Standard error of :func:`auc` for independent rows; makes no assumption on the distributions.

    ``sqrt(var_i(V_i) / m + var_j(V_j) / n)``, V the share of the other set that a row wins against.

    Args:
        positive: scores, [m], m >= 2.
        negative: scores, [n], n >= 2.

    Returns:
        The standard error; 0 where the sets do not overlap or every score is the same.

    Raises:
        ConfigError: fewer than 2 rows on a side.

    Source: DeLong, DeLong and Clarke-Pearson 1988 (structural components).

    Example:
        >>> round(auc_se(np.array([2.0, 3.0]), np.array([1.0, 2.0])), 3)
        0.177
    """
    p = numbers(positive, "positive scores", least=2)
    n = numbers(negative, "negative scores", least=2)
    return float(np.sqrt(_shares(p, n).var(ddof=1) / len(p) + _shares(n, p).var(ddof=1) / len(n)))


def auc_interval(
    positive: np.ndarray,
    negative: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Bootstrap percentile interval of :func:`auc`.

    Rows are drawn within each set. With ``groups``, whole users are drawn instead, each bringing their rows
    of both sets: rows of one user are alike, and an interval over rows would be too narrow. Where a set is of
    fewer than :data:`curerec.evaluation.bootstrap.LEAST_USERS` users, rows are drawn all the same.

    Args:
        positive: scores, [m].
        negative: scores, [n].
        draws: bootstrap draws.
        seed: of the draws.
        groups: user of each positive, [m], and of each negative, [n].
        level: of the interval.

    Returns:
        (low, high).

    Raises:
        ConfigError: an empty set, lengths that differ, or no draw with both sets in it.

    Example:
        >>> auc_interval(np.array([2.0, 3.0, 4.0]), np.array([0.0, 1.0]), draws=50)
        (1.0, 1.0)
    """
    if not 0 < level < 1:
        raise ConfigError("must be between 0 and 1", where="level")
    return interval(auc_draws(positive, negative, draws=draws, seed=seed, groups=groups), level)


def auc_draws(
    positive: np.ndarray,
    negative: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups | None = None,
) -> Float64[np.ndarray, " draws"]:
    """AUC of each bootstrap draw; the same seed and groups draw the same rows, so two models pair.

    Args and Raises: as :func:`auc_interval`.

    Example:
        >>> auc_draws(np.array([2.0, 3.0, 4.0]), np.array([0.0, 1.0]), draws=3).tolist()
        [1.0, 1.0, 1.0]
    """
    p, n = numbers(positive, "positive scores"), numbers(negative, "negative scores")
    ranked = Ranked(p, n)
    drawn = resamples(len(p), len(n), draws=draws, seed=seed, groups=groups)
    return np.concatenate([ranked.auc(*weights) for weights in drawn])


class Ranked:
    """Two sets of scores ranked once, for their AUC under many weightings of the rows.

    Args:
        positive: scores, [m].
        negative: scores, [n].

    Example:
        >>> ones = np.ones((1, 2))
        >>> Ranked(np.array([2.0, 3.0]), np.array([1.0, 2.0])).auc(ones, ones).tolist()
        [0.875]
    """

    def __init__(self, positive: np.ndarray, negative: np.ndarray) -> None:
        self.order = np.argsort(negative, kind="stable")
        ordered = negative[self.order]
        self.left, self.right = (np.searchsorted(ordered, positive, side) for side in ("left", "right"))

    def auc(self, of_positive: np.ndarray, of_negative: np.ndarray) -> Float64[np.ndarray, " k"]:
        """AUC by weighting, nan where a set has no weight.

        Args:
            of_positive, of_negative: weights of the rows, [k, m] and [k, n]; need not sum to 1.
        """
        k = len(of_negative)
        below = np.concatenate([np.zeros((k, 1)), of_negative[:, self.order].cumsum(1)], 1)
        won = (of_positive * (below[:, self.left] + below[:, self.right])).sum(1) / 2
        pairs = of_positive.sum(1) * of_negative.sum(1)
        return np.divide(won, pairs, out=np.full(k, np.nan), where=pairs > 0)
