"""Bootstrap resamples of one set or of two, by rows or by whole users."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from curerec.errors import ConfigError
from curerec.evaluation.inputs import MEND

_CELLS = 1 << 21  # weights held at once (16 MiB)

#: With fewer users in a set draws of users hardly vary it, of a single one not at all (of two, [min, max] of
#: their means holds the truth in half of the cases). Of two sets rows are drawn then; of one nothing is. Of
#: five the interval of a skewed mean covers .83, of 20 .91 (docs/metrics.md).
LEAST_USERS = 5

Groups = tuple[np.ndarray, np.ndarray]  # user of each row of the first set, [m], and of the second, [n]


def resamples(
    m: int, n: int, *, draws: int, seed: int, groups: Groups | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights of the rows in bootstrap draws, some draws at a time.

    Without ``groups`` rows are drawn within each set. With it whole users are drawn, each bringing their rows
    of both sets; a draw that leaves a set empty is left out. Where a set is of fewer than :data:`LEAST_USERS`
    users rows are drawn all the same: of one user alone all draws of users would be the same set. Whether
    there are rows enough for an interval :func:`interval_of_two` knows.

    Args:
        m, n: rows of the two sets.
        draws: number of draws.
        seed: of the draws.
        groups: user of each row.

    Yields:
        Weights float64 [k, m] and [k, n], each row summing to 1.

    Raises:
        ConfigError: no draws, lengths that differ, or no draw with both sets in it.
    """
    if draws < 1:
        raise ConfigError("must be at least 1", where="draws")
    sizes, rows = (m, n), (np.arange(m), np.arange(n))
    if groups is not None:
        a, b = (np.asarray(g) for g in groups)
        if a.shape != (m,) or b.shape != (n,):
            raise ConfigError(f"shapes {a.shape}, {b.shape} for {m}, {n} rows", where="groups", mend=MEND)
        if min(len(np.unique(a)), len(np.unique(b))) < LEAST_USERS:
            groups = None
        else:
            users, code = np.unique(np.concatenate([a, b]), return_inverse=True)
            sizes, rows = (len(users), len(users)), (code[:m], code[m:])
    rng = np.random.default_rng(seed)
    step, any_kept = max(1, _CELLS // (m + n)), False
    for start in range(0, draws, step):
        k = min(step, draws - start)
        drawn = _counts(rng, k, sizes[0])
        first = drawn[:, rows[0]]
        second = (_counts(rng, k, sizes[1]) if groups is None else drawn)[:, rows[1]]
        totals = first.sum(1, keepdims=True), second.sum(1, keepdims=True)
        kept = ((totals[0] > 0) & (totals[1] > 0))[:, 0]
        if kept.any():
            any_kept = True
            yield first[kept] / totals[0][kept], second[kept] / totals[1][kept]
    if not any_kept:
        raise ConfigError("no draw held both sets", where="groups", mend="Give more draws or more users")


def weights(
    n: int, *, draws: int, seed: int, groups: np.ndarray | None = None
) -> Iterator[Float64[np.ndarray, "k n"]]:
    """Weights of the rows of one set in bootstrap draws, some draws at a time; each row sums to 1.

    Args:
        n: rows.
        draws, seed: of the bootstrap.
        groups: user of each row, [n]; whole users are drawn then.

    Raises:
        ConfigError: as :func:`resamples`, or fewer than :data:`LEAST_USERS` users, or two rows.
    """
    if draws < 1:
        raise ConfigError("must be at least 1", where="draws")
    code: np.ndarray = np.arange(n)
    least = 2
    if groups is not None:
        least = LEAST_USERS
        if np.shape(groups) != (n,):
            raise ConfigError(f"shape {np.shape(groups)} for {n} rows", where="groups", mend=MEND)
        code = np.unique(np.asarray(groups), return_inverse=True)[1]
    size = int(code.max(initial=-1)) + 1
    if size < least:
        raise ConfigError(
            f"{size} user(s) or row(s); drawing needs at least {least}", where="groups", mend=MEND
        )
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // n)
    for start in range(0, draws, step):
        drawn = _counts(rng, min(step, draws - start), size)[:, code]
        yield drawn / drawn.sum(1, keepdims=True)


def enough_users(user: np.ndarray) -> bool:
    """Whether there are users enough for an interval over them."""
    return len(np.unique(user)) >= LEAST_USERS


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap values, (low, high).

    Example:
        >>> interval(np.arange(5.0), 0.5)
        (1.0, 3.0)
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval_of_two(values: np.ndarray, sets: Groups) -> tuple[float | None, float | None]:
    """Percentile interval of a number of two sets; none where one is of fewer than :data:`LEAST_USERS` rows.

    Draws of so few rows hardly vary the set: of a single one not at all, and the other set's scatter alone
    would pass for the error of both.

    Args:
        values: of bootstrap draws (:func:`resamples`), [draws].
        sets: a value for each row of either set, e.g. its user; [m] and [n].

    Example:
        >>> interval_of_two(np.arange(5.0), (np.zeros(1), np.zeros(900)))
        (None, None)
    """
    return interval(values) if min(map(len, sets)) >= LEAST_USERS else (None, None)


def mean_interval(
    each: np.ndarray, *, draws: int = 1000, seed: int = 0, groups: np.ndarray | None = None
) -> tuple[float, float]:
    """Bootstrap interval of a mean over rows.

    Args:
        each: [n].
        draws, seed: of the bootstrap.
        groups: user of each row, [n].

    Example:
        >>> mean_interval(np.ones(4), draws=10)
        (1.0, 1.0)
    """
    return interval(
        np.concatenate([w @ each for w in weights(len(each), draws=draws, seed=seed, groups=groups)])
    )


def _counts(rng: np.random.Generator, draws: int, n: int) -> np.ndarray:
    """How often each of n is drawn in n draws with replacement, float64 [draws, n]."""
    chosen = rng.integers(0, n, (draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)
