"""Which interactions become training, control, validation and test examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass

import numpy as np

from curerec.errors import DataError
from curerec.interactions import Interactions
from curerec.records import Examples, Split

HISTORY = 10  # K of PROTOCOL section 1
MIN_HISTORY = 5
CHUNK = 1 << 20  # rows at a time
ROLES = ("train", "control", "valid", "test")
LIKED = 4.0  # a rating of at least this is a "yes"


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
    them it is left out and an older one moves up, as if it had never been there. Only rows near the targets
    are read.

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
    targets = np.asarray(targets, dtype=np.int64)
    first = data.first[data.user_code[targets]]
    gone = np.zeros(0, np.int64) if deleted is None else np.flatnonzero(deleted)
    left = targets - first - (np.searchsorted(gone, targets) - np.searchsorted(gone, first))
    targets, first = targets[left >= min_history], first[left >= min_history]
    rows = np.empty((len(targets), history), np.int64)
    at = targets
    for k in range(history - 1, -1, -1):
        at = _kept_before(at, gone)
        rows[:, k] = np.where(at >= first, at, -1)
    return Examples(targets, rows, (data.rating[targets] >= LIKED).astype(np.int8))


def _kept_before(at: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """The last row before each that is not among the deleted ones (ascending)."""
    at = at - 1
    if not len(gone):
        return at
    # A run of deleted rows is passed at once: gone[k] - k is the same all along it.
    run = gone - np.arange(len(gone))
    place = np.searchsorted(gone, at)
    hit = gone[np.minimum(place, len(gone) - 1)] == at
    start = gone[np.searchsorted(run, run[np.minimum(place, len(gone) - 1)])]
    return np.where(hit, start - 1, at)


TRAIN, CONTROL, VALID, TEST = 1, 2, 3, 4  # of per_user_roles; 0 is in none


def per_user_roles(
    data: Interactions,
    *,
    seed: int = 0,
    control_share: float = 0.1,
    holdout_share: float = 0.2,
    users: np.ndarray | None = None,
    chunk: int = CHUNK,
) -> np.ndarray:
    """Role of each row in :func:`per_user_split`, uint8 [n_rows]: 1 train, 2 control, 3 valid, 4 test.

    Role 0: too little history before it, or a user who is not asked for.

    Args:
        data, seed, control_share, holdout_share, users: as for :func:`per_user_split`.
        chunk: rows at a time; memory is that of a chunk and a byte a row.
    """
    rng = np.random.default_rng(seed)
    wanted = np.ones(len(data.user_ids), bool)
    if users is not None:
        wanted = np.isin(np.arange(len(wanted)), users)
    out = np.empty(len(data), np.uint8)
    for start in range(0, len(data), chunk):
        code = data.user_code[start : start + chunk]
        row = np.arange(start, start + len(code))
        first, end = data.first[code], data.first[code + 1]
        held = np.floor((end - first) * holdout_share).astype(int)
        from_end = end - 1 - row
        is_test = from_end < held // 2
        is_control = rng.random(len(code)) < control_share
        role = np.select([is_test, from_end < held, is_control], [TEST, VALID, CONTROL], TRAIN)
        out[start : start + len(code)] = np.where(wanted[code] & (row - first >= MIN_HISTORY), role, 0)
    return out


def per_user_split(
    data: Interactions,
    *,
    seed: int = 0,
    control_share: float = 0.1,
    holdout_share: float = 0.2,
    users: np.ndarray | None = None,
    history: int = HISTORY,
    drawn: Drawn | None = None,
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
        drawn: take a random part of each role; :func:`subsample` would draw the same ones, but here no
            history is built of what is not drawn.

    Raises:
        DataError: no user has enough history for any example.

    Source: PROTOCOL section 1 (this project's own default split).
    """
    role = per_user_roles(
        data, seed=seed, control_share=control_share, holdout_share=holdout_share, users=users
    )
    rows = {name: np.flatnonzero(role == code) for code, name in enumerate(ROLES, start=TRAIN)}
    for name, found in rows.items():
        if len(found) == 0:
            raise DataError(
                f"the {name} part of the split is empty: no user has {MIN_HISTORY} earlier interactions",
                where=data.name,
                mend="Use data with longer histories, or more users",
            )
    if drawn is not None:
        rows = {name: found[index] for (name, found), index in zip(rows.items(), drawn.of(rows), strict=True)}
    made = {name: examples(data, found, history=history) for name, found in rows.items()}
    return Split(**made, kind="per-user", seed=seed)


@dataclass(frozen=True)
class Drawn:
    """How many examples of each role are drawn, without replacement, in their own order.

    Attributes:
        train: of ``train`` at most; None: all.
        other: of each other role at most; None: all.
        seed: of the draw.
    """

    train: int | None = None
    other: int | None = None
    seed: int = 0

    def of(self, parts: Mapping[str, Sized]) -> Iterator[np.ndarray | slice]:
        """Indices into each of the parts, which are those of :data:`ROLES`, in this order."""
        rng = np.random.default_rng([self.seed, 77])
        for name in ROLES:
            size, n = self.train if name == "train" else self.other, len(parts[name])
            keep = size is None or size >= n
            yield slice(None) if keep else np.sort(rng.choice(n, size, replace=False))


def subsample(split: Split, drawn: Drawn) -> Split:
    """A random part of a split, for quick runs."""
    parts = {name: getattr(split, name) for name in ROLES}
    taken = {name: parts[name].take(index) for name, index in zip(ROLES, drawn.of(parts), strict=True)}
    return Split(**taken, kind=split.kind, seed=split.seed)
