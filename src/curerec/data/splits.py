"""Which interactions become training, control, validation and test examples."""

from __future__ import annotations

import numpy as np

from curerec.errors import DataError
from curerec.records import Examples, Interactions, Split

HISTORY = 10  # K of PROTOCOL section 1
MIN_HISTORY = 5
LIKED = 4.0  # a rating of at least this is a "yes"


def first_rows(data: Interactions) -> np.ndarray:
    """First row of each row's user, int64 [n_rows]; the table is sorted by user, then time."""
    code = data.user_code
    starts = np.r_[0, np.flatnonzero(np.diff(code)) + 1]
    return np.repeat(starts, np.diff(np.r_[starts, len(code)]))


def examples(
    data: Interactions,
    targets: np.ndarray,
    *,
    deleted: np.ndarray | None = None,
    history: int = HISTORY,
    min_history: int = MIN_HISTORY,
) -> Examples:
    """Examples that ask about ``targets``, their histories taken from rows that are not deleted.

    A history is the last ``history`` earlier interactions of the same user. Where ``deleted`` marks one of
    them it is left out and an older one moves up, as if it had never been there.

    Args:
        data: the interactions, [n_rows].
        targets: rows asked about, int [n]. Targets with fewer than ``min_history`` earlier interactions left
            are skipped.
        deleted: bool [n_rows] or None.
        history: interactions that are shown at most.
        min_history: see ``targets``.

    Returns:
        Examples with history int64 [m, history], m <= n.
    """
    kept = np.ones(len(data), bool) if deleted is None else ~deleted
    # Rank among kept rows: kept_before[r] counts kept rows before row r in the whole table, so the kept rows
    # of the same user before r are the last kept_before[r] - kept_before[first[r]] entries of `order`.
    order = np.flatnonzero(kept)
    kept_before = np.r_[0, np.cumsum(kept)][:-1]
    first = first_rows(data)
    targets = np.asarray(targets, dtype=np.int64)
    available = kept_before[targets] - kept_before[first[targets]]
    targets = targets[available >= min_history]
    available = available[available >= min_history]
    offset = np.arange(history)[None, :] - history  # -K .. -1, oldest first
    index = kept_before[targets][:, None] + offset
    valid = -offset <= available[:, None]
    rows = np.where(valid, order[np.where(valid, index, 0)] if len(order) else -1, -1)
    label = (data.rating[targets] >= LIKED).astype(np.int8)
    return Examples(targets, rows.astype(np.int64), label)


def per_user_split(
    data: Interactions,
    *,
    seed: int = 0,
    control_share: float = 0.1,
    holdout_share: float = 0.2,
    users: np.ndarray | None = None,
    history: int = HISTORY,
) -> Split:
    """The last 20 % of each user's interactions held out, half for validation and half for test.

    Of the rest a random 10 % is the control set, drawn like the training data and never trained on: a later
    period would be another distribution (PROTOCOL section 1).

    Args:
        data: interactions sorted by user and time.
        seed: of the control draw.
        control_share: share of the earlier interactions that become control.
        holdout_share: share of each user's latest interactions that are held out.
        users: user codes to take examples from; all when None.
        history: interactions that a prompt shows at most.

    Raises:
        DataError: no user has enough history for any example.

    Source: PROTOCOL section 1 (this project's own default split).
    """
    first = first_rows(data)
    position = np.arange(len(data)) - first
    count = np.bincount(data.user_code)[data.user_code]
    held = np.floor(count * holdout_share).astype(int)
    from_end = count - 1 - position
    is_test = from_end < held // 2
    is_valid = (from_end < held) & ~is_test
    is_control = np.random.default_rng(seed).random(len(data)) < control_share
    early = ~is_test & ~is_valid
    wanted = np.ones(len(data), bool) if users is None else np.isin(data.user_code, users)

    def make(mask: np.ndarray) -> Examples:
        return examples(data, np.flatnonzero(mask & wanted), history=history)

    split = Split(
        train=make(early & ~is_control),
        control=make(early & is_control),
        valid=make(is_valid),
        test=make(is_test),
        kind="per-user",
        seed=seed,
    )
    for role in ("train", "control", "valid", "test"):
        if len(getattr(split, role)) == 0:
            raise DataError(
                f"the {role} part of the split is empty: no user has {MIN_HISTORY} earlier interactions",
                where=data.name,
                mend="Use data with longer histories, or more users",
            )
    return split


def subsample(split: Split, *, train: int | None = None, other: int | None = None, seed: int = 0) -> Split:
    """A random part of a split, for quick runs; each role is drawn without replacement in its own order."""
    rng = np.random.default_rng([seed, 77])

    def draw(part: Examples, size: int | None) -> Examples:
        if size is None or size >= len(part):
            return part
        return part.take(np.sort(rng.choice(len(part), size, replace=False)))

    return Split(
        train=draw(split.train, train),
        control=draw(split.control, other),
        valid=draw(split.valid, other),
        test=draw(split.test, other),
        kind=split.kind,
        seed=split.seed,
    )
