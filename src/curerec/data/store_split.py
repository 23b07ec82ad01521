"""Split and requests of a store: a pass over the rows for the split, only what is touched for a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curerec.data.forget import _refuse_unknown
from curerec.data.splits import HISTORY, LIKED, MIN_HISTORY
from curerec.data.store import CHUNK, Store, release
from curerec.records import Examples, ForgetRequest

ROLES = ("none", "train", "control", "valid", "test")


def roles(
    store: Store,
    *,
    seed: int = 0,
    control_share: float = 0.1,
    holdout_share: float = 0.2,
    chunk: int = CHUNK,
) -> np.ndarray:
    """Role of each row in the per-user split, uint8 [n_rows], memory-mapped, kept with the store.

    The same rows in the same roles as :func:`curerec.data.splits.per_user_split` gives, a chunk of rows at a
    time. Role 0: too short a history, or nothing.

    Args:
        store: from :func:`curerec.data.store.build`.
        seed, control_share, holdout_share: as there.
        chunk: rows at a time.
    """
    path = store.path / "roles.npy"
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (store.n_rows,))
    rng, user = np.random.default_rng(seed), store.column("user")
    for start in range(0, store.n_rows, chunk):
        code = np.asarray(user[start : start + chunk])
        row = np.arange(start, start + len(code))
        first, end = store.first[code], store.first[code + 1]
        held = np.floor((end - first) * holdout_share).astype(int)
        from_end = end - 1 - row
        is_test = from_end < held // 2
        is_valid = (from_end < held) & ~is_test
        is_control = rng.random(len(code)) < control_share
        role = np.select([is_test, is_valid, is_control], [4, 3, 2], 1)
        out[start : start + len(code)] = np.where(row - first >= MIN_HISTORY, role, 0)
        release(user, out)
    out.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def examples_at(
    store: Store, targets: np.ndarray, deleted: np.ndarray | None = None, *, history: int = HISTORY
) -> Examples:
    """Examples of some rows, as :func:`curerec.data.splits.examples` makes them; only their users are read.

    Args:
        store: the interactions.
        targets: rows, int64 [n], ascending.
        deleted: rows that no history may hold, ascending; None: none.
    """
    targets = np.asarray(targets, np.int64)
    gone = np.zeros(0, np.int64) if deleted is None else np.asarray(deleted, np.int64)
    first = store.first[store.column("user")[targets]]
    # Going back from a target, every deleted row that is met moves the window one row further.
    rows = np.full((len(targets), history), -1, np.int64)
    at = targets.copy()
    for k in range(history - 1, -1, -1):
        at = _kept_before(at, gone)
        rows[:, k] = np.where(at >= first, at, -1)
    before = targets - first - (np.searchsorted(gone, targets) - np.searchsorted(gone, first))
    keep = before >= MIN_HISTORY
    label = (store.column("rating")[targets[keep]] >= LIKED).astype(np.int8)
    return Examples(targets[keep], rows[keep], label)


def _kept_before(at: np.ndarray, gone: np.ndarray) -> np.ndarray:
    at = at - 1
    if not len(gone):
        return at
    while True:
        hit = gone[np.minimum(np.searchsorted(gone, at), len(gone) - 1)] == at
        if not hit.any():
            return at
        at = at - hit


@dataclass(frozen=True)
class Touched:
    """What a request has to do with a store.

    Attributes:
        deleted: rows that the request deletes, int64, ascending.
        changed: other rows whose histories held a deleted one, int64, ascending: all that has to be rebuilt.
    """

    deleted: np.ndarray
    changed: np.ndarray


def resolve(store: Store, request: ForgetRequest, *, history: int = HISTORY) -> Touched:
    """The rows that a request names, and the later histories that they enter; nothing else is read.

    Raises:
        RequestError: an id is not in the data (by its place in the request).
    """
    if request.kind == "interactions":
        users = _found(store, "users", [str(u) for u, _ in request.ids])
        items = _found(store, "items", [str(i) for _, i in request.ids])
        item = store.column("item")
        found = []
        for u, i in zip(users, items, strict=True):
            span = slice(store.first[u], store.first[u + 1]) if u >= 0 and i >= 0 else slice(0, 0)
            hit = np.flatnonzero(np.asarray(item[span]) == i)
            found.append(int(span.start + hit[0]) if len(hit) else -1)
        _refuse_unknown([r < 0 for r in found], "interaction", request)
        rows = np.asarray(found, np.int64)
    else:
        kind = request.kind
        codes = _found(store, kind, [str(i) for i in request.ids])
        _refuse_unknown([c < 0 for c in codes], kind[:-1], request)
        rows = np.concatenate(list(_rows_of(store, kind, codes)) or [np.zeros(0, np.int64)])
    deleted = np.unique(rows)
    if not len(deleted):
        _refuse_unknown([True], "row", request)
    end = store.first[store.column("user")[deleted] + 1]
    later = deleted[:, None] + np.arange(1, history + 1)
    # With deleted rows between, the window of the original histories is what counts: K rows, deleted or not.
    changed = np.unique(later[later < end[:, None]])
    return Touched(deleted, np.setdiff1d(changed, deleted, assume_unique=True))


def _rows_of(store: Store, kind: str, codes: np.ndarray) -> Iterator[np.ndarray]:
    for c in codes:
        if kind == "users":
            yield np.arange(store.first[c], store.first[c + 1])
        else:
            yield np.asarray(store.item_rows[store.item_first[c] : store.item_first[c + 1]])


def _found(store: Store, kind: str, ids: list[str]) -> np.ndarray:
    codes = pc.index_in(pa.array(ids, pa.string()), value_set=store.ids(kind))
    return codes.fill_null(-1).to_numpy(zero_copy_only=False)
