"""Checks that every metric makes of its arrays; a fault is named, no value is shown."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int, Real
from scipy.special import expit
from scipy.stats import rankdata

from curerec.errors import ConfigError

MEND = "Check that the model's outputs are finite and cover the set they are said to cover"


def numbers(values: np.ndarray, what: str, *, ndim: int = 1, least: int = 1) -> np.ndarray:
    """The values as finite float64 of a given shape.

    Args:
        values: anything numpy takes.
        what: name of the values in an error.
        ndim: number of axes they must have.
        least: number of rows they must at least have.

    Raises:
        ConfigError: wrong shape, too few rows, nan or infinite values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ConfigError(f"{array.ndim} axes where {ndim} are needed", where=what, mend=MEND)
    if len(array) < least:
        raise ConfigError(f"{len(array)} rows where at least {least} are needed", where=what, mend=MEND)
    if not np.isfinite(array).all():
        raise ConfigError("holds values that are not finite", where=what, mend=MEND)
    return array


def same_length(*arrays: np.ndarray, what: str) -> None:
    """Refuse arrays that do not speak of the same rows."""
    lengths = sorted({len(a) for a in arrays})
    if len(lengths) > 1:
        raise ConfigError(f"lengths differ: {', '.join(map(str, lengths))}", where=what, mend=MEND)


def margin(logits: np.ndarray, what: str = "logits") -> Float64[np.ndarray, " n"]:
    """``z_yes - z_no``.

    Args:
        logits: of (no, yes), [n, 2]; or margins already, [n].

    Returns:
        float64 [n].
    """
    array = np.asarray(logits)
    if array.ndim == 1:
        return numbers(array, what)
    pair = numbers(array, what, ndim=2)
    if pair.shape[1] != 2:
        raise ConfigError(f"{pair.shape[1]} columns where (no, yes) are needed", where=what, mend=MEND)
    return pair[:, 1] - pair[:, 0]


def p_yes(logits: np.ndarray) -> Float64[np.ndarray, " n"]:
    """P(yes) over {No, Yes}, float64 [n].

    Args:
        logits: of (no, yes), [n, 2]; or margins, [n].

    Example:
        >>> p_yes(np.array([[1.0, 1.0]])).tolist()
        [0.5]
    """
    return expit(margin(logits))


def labels(label: np.ndarray, n: int) -> Bool[np.ndarray, " {n}"]:
    """Labels as bool [n]; anything but 0 and 1 is refused."""
    array = numbers(label, "labels")
    if len(array) != n:
        raise ConfigError(f"{len(array)} labels for {n} predictions", where="labels", mend=MEND)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ConfigError("holds values other than 0 and 1", where="labels", mend=MEND)
    return array == 1


def probabilities(values: np.ndarray, what: str) -> Float64[np.ndarray, "*shape"]:
    """Finite values in [0, 1], float64, any shape but empty."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ConfigError("is empty", where=what, mend=MEND)
    if not ((array >= 0) & (array <= 1)).all():  # false for nan as well
        raise ConfigError("holds values that are no probabilities", where=what, mend=MEND)
    return array


def equal_mass(values: Real[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """Bin of each value, so that bins hold equally many; ties share a bin, so row order does not matter.

    ``bin = floor(bins * #{smaller} / n)``

    Args:
        values: [n].
        bins: number of bins; with ties some may stay empty.

    Returns:
        int [n] in 0..bins-1.

    Example:
        >>> equal_mass(np.array([0.3, 0.1, 0.2, 0.4]), 2).tolist()
        [1, 0, 0, 1]
    """
    smaller = rankdata(values, method="min").astype(np.int64) - 1
    return smaller * bins // len(values)
