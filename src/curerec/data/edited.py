"""A table less some rows, or with new ones, told a chunk at a time: what is edited need not fit in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curerec.data.columns import Origin, codes_in
from curerec.data.table import checked_titles, id_order
from curerec.errors import DataError
from curerec.interactions import CHUNK, Interactions, coded

Chunk = dict[str, np.ndarray]
NEW = -1  # in the column ``row``: the row came in


@dataclass(frozen=True)
class Edited:
    """What the rows of a table are to be.

    Attributes:
        n: rows.
        user_ids: of the users that are left, in the order of their first rows.
        titles: the catalogue from then on.
        chunks: call for the rows in their order, some at a time: ``user`` and ``item`` (codes, int32),
            ``rating`` (float64), ``time`` (int64) and ``row``, int64, their number in the table before,
            :data:`NEW` for those that came in.
        name, source: as of the table before.
    """

    n: int
    user_ids: pa.Array
    titles: pa.Table
    chunks: Callable[[], Iterator[Chunk]]
    name: str
    source: str

    def in_memory(self) -> Interactions:
        """The table, held in memory."""
        parts = list(self.chunks())
        user, item, rating, time = (
            np.concatenate([part[name] for part in parts]) for name in ("user", "item", "rating", "time")
        )
        table = pa.table(
            {
                "user": coded(user, self.user_ids),
                "item": coded(item, self.titles["item"].combine_chunks()),
                "rating": pa.array(rating),
                "time": pa.array(time),
            }
        )
        return Interactions(table, self.titles, self.name, self.source)


def whole(data: Interactions, *, chunk: int = CHUNK) -> Edited:
    """A table as it is."""

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(data), chunk):
            part = slice(start, min(start + chunk, len(data)))
            yield _rows(data, part) | {"row": np.arange(part.start, part.stop)}
            data.let_go()

    return Edited(len(data), data.user_ids, data.titles, chunks, data.name, data.source)


def keeping(
    data: Interactions, keep: np.ndarray, titles: pa.Table | None = None, *, chunk: int = CHUNK
) -> Edited:
    """Some rows of a table.

    Args:
        data: the table.
        keep: bool [n_rows].
        titles: the catalogue from then on, with those of all items that are kept; None: as it was.
        chunk: rows at a time.

    Raises:
        ValueError: while chunks are taken: the title of an item that is kept is not among those named.
    """
    titles = data.titles if titles is None else titles
    item_of = codes_in(titles["item"].combine_chunks(), data.item_ids)
    left = np.zeros(len(data.user_ids), bool)
    for start in range(0, len(data), chunk):
        part = slice(start, start + chunk)
        left[data.user_code[part][keep[part]]] = True
        data.let_go()
    user_of = np.cumsum(left, dtype=np.int32) - 1

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(data), chunk):
            row = start + np.flatnonzero(keep[start : start + chunk])
            rows = _rows(data, row)
            item = item_of[rows["item"]]
            if (item < 0).any():
                raise ValueError("a row that is kept needs the title of its item")
            yield rows | {"user": user_of[rows["user"]], "item": item, "row": row}
            data.let_go()

    user_ids = data.user_ids.filter(pa.array(left))
    return Edited(int(keep.sum()), user_ids, titles, chunks, data.name, data.source)


def adding(data: Interactions, more: Interactions, *, chunk: int = CHUNK) -> Edited:
    """A table and new rows, in the order that :func:`curerec.data.table.interactions` gives all of them.

    Args:
        data: the table; of an item that both name its title stays.
        more: new rows, few enough to be held in memory.
        chunk: rows at a time, on average; a user's stay together.

    Raises:
        DataError: a user and an item are in both.
    """
    both = codes_in(data.user_ids, more.user_ids)[more.user_code]
    if (data.rows_of_pairs(both, codes_in(data.item_ids, more.item_ids)[more.item_code]) >= 0).any():
        raise DataError(
            "rates an item that its user has rated already", where=more.name, mend="Remove the row"
        )
    fresh = more.titles.filter(pa.array(codes_in(data.item_ids, more.item_ids) < 0))
    titles = checked_titles(pa.concat_tables([data.titles, fresh]), Origin("titles"))
    item_ids = titles["item"].combine_chunks()
    item_of = [codes_in(item_ids, one.item_ids) for one in (data, more)]
    # Rows of one time are ordered by the rank of their item among those rated.
    rated = np.zeros(len(item_ids), bool)
    for one, of in zip((data, more), item_of, strict=True):
        rated[of[one.rated]] = True
    rank = np.full(len(item_ids), -1, np.int32)
    where = np.flatnonzero(rated)
    rank[where[id_order(item_ids.take(pa.array(where)))]] = np.arange(len(where), dtype=np.int32)

    user_ids = pa.concat_arrays(
        [data.user_ids, more.user_ids.filter(pa.array(codes_in(data.user_ids, more.user_ids) < 0))]
    )
    user_ids = user_ids.take(pa.array(id_order(user_ids)))
    old, new = (codes_in(one.user_ids, user_ids) for one in (data, more))  # codes before, by code from now on
    rows = [_counts(one, of) for one, of in ((data, old), (more, new))]
    first = np.r_[0, np.cumsum(rows[0] + rows[1])]

    def chunks() -> Iterator[Chunk]:
        for low, high in itertools.pairwise(ranges(first, chunk)):
            parts = []
            for one, codes, of in ((data, old, item_of[0]), (more, new, item_of[1])):
                user, row = _rows_of(one, codes[low:high])
                part = _rows(one, row)
                part |= {"user": (user + low).astype(np.int32), "item": of[part["item"]]}
                parts.append(part | {"row": row if one is data else np.full(len(row), NEW)})
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            order = np.lexsort((rank[joined["item"]], joined["time"], joined["user"]))
            yield {name: values[order] for name, values in joined.items()}
            data.let_go()

    return Edited(int(first[-1]), user_ids, titles, chunks, data.name, data.source)


def ranges(first: np.ndarray, size: int) -> np.ndarray:
    """First users of ranges that have about ``size`` rows each, and the number of users.

    Args:
        first: first row of each user, and the number of rows, int64 [n_users + 1].
        size: rows.
    """
    bounds = [0]
    while bounds[-1] < len(first) - 1:
        stop = int(np.searchsorted(first, first[bounds[-1]] + size, side="right")) - 1
        bounds.append(max(bounds[-1] + 1, stop))
    return np.asarray(bounds)


def _rows(data: Interactions, rows: slice | np.ndarray) -> Chunk:
    return {
        "user": data.user_code[rows],
        "item": data.item_code[rows],
        "rating": data.rating[rows],
        "time": data.time[rows],
    }


def _counts(data: Interactions, codes: np.ndarray) -> np.ndarray:
    """Rows of each user, int64 [n]; a code of -1 has none."""
    return np.where(codes < 0, 0, np.diff(data.first)[codes])


def _rows_of(data: Interactions, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of users, one user after the other: which of the codes each is of, and its number, int64 both."""
    count = _counts(data, codes)
    user = np.repeat(np.arange(len(codes)), count)
    start = np.where(codes < 0, 0, data.first[codes])
    return user, start[user] + np.arange(len(user)) - (np.cumsum(count) - count)[user]
