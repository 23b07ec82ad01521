"""The one table every reader builds: checks, canonical order, nothing else.

Messages name a file and a row, never an id, a rating or a title.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curerec.data import columns
from curerec.data.columns import Origin
from curerec.errors import DataError
from curerec.interactions import Interactions, coded

Duplicates = Literal["error", "last"]
#: Ratings are read on a scale of five, since "liked" means at least 4 everywhere in the package.
SCALE = (0.0, 5.0)


def interactions(
    users: Any,
    items: Any,
    ratings: Any,
    times: Any | None,
    titles: dict[str, str] | pa.Table,
    *,
    name: str,
    source: str,
    origin: Origin | None = None,
    titles_origin: Origin | None = None,
    duplicates: Duplicates = "error",
    scale: tuple[float, float] = SCALE,
) -> Interactions:
    """Check columns of any origin and put them into the canonical order.

    Rows are sorted by (user, time, item) and titles by item; ids compare as integers when all ids of their
    column are integers, else as strings. Equal ratings give an equal table, so an equal
    :attr:`~curerec.interactions.Interactions.fingerprint`, whatever format and row order they came in.

    Args:
        users, items: ids, [n] of str or int.
        ratings: [n], numbers or their text, within ``scale``.
        times: [n], whole numbers or their text, any unit; None takes the row order inside each user.
        titles: item to title, or a table with columns ``item`` and ``title``. The whole catalogue is kept.
        name, source: for the record.
        origin, titles_origin: files the rows came from, for messages.
        duplicates: what to do with a second row of one (user, item): ``error``, or keep the ``last`` in time
            (of equal times the later row).
        scale: lowest and highest rating allowed.

    Returns:
        The table.

    Raises:
        DataError: an id or title is empty, a rating or time is no number or out of range, a pair is there
            twice, an item has no title or two.

    Related:
        :func:`curerec.data.readers.read`, which calls this for a file.

    Example:
        >>> titles = {"a": "Alien (1979)"}
        >>> data = interactions(["10", "2"], ["a", "a"], [5, 3], None, titles, name="x", source="y")
        >>> data.ratings["user"].to_pylist(), len(data)
        (['2', '10'], 2)
    """
    origin = origin or Origin("interactions")
    titles_origin = titles_origin or Origin("titles")
    user, item = columns.ids(users, "user id", origin), columns.ids(items, "item id", origin)
    rating = columns.ratings(ratings, origin, scale)
    time = None if times is None else columns.times(times, origin)
    if len({len(user), len(item), len(rating), len(user if time is None else time)}) > 1:
        raise DataError("columns differ in length", where=origin.file, mend="Give one value a row in each.")
    if len(user) == 0:
        raise DataError("holds no interaction", where=origin.file, mend="Give a file with at least one row.")

    catalogue = checked_titles(titles, titles_origin)
    users_, user_rank = _ranked(user)
    items_, item_rank = _ranked(item)
    item_code = columns.codes_in(catalogue["item"].combine_chunks(), items_)
    if (item_code < 0).any():
        require_titles(item, catalogue, origin, titles_origin)
    del user, item
    if time is None:
        time = _order_within(user_rank)
    keep = _unique_pairs(user_rank, item_rank, time, origin, duplicates)
    order = keep[np.lexsort((item_rank[keep], time[keep], user_rank[keep]))]
    table = pa.table(
        {
            "user": coded(user_rank[order], users_),
            "item": coded(item_code[item_rank[order]], catalogue["item"].combine_chunks()),
            "rating": pa.array(rating[order], pa.float64()),
            "time": pa.array(time[order], pa.int64()),
        }
    )
    return Interactions(table, catalogue, name, source)


def _ranked(ids: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The distinct ids in their order, and the position of each id among them, int32 [n]."""
    encoded = ids.dictionary_encode()
    order = id_order(encoded.dictionary)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(rank), dtype=np.int32)
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy(zero_copy_only=False)]


def id_order(ids: pa.Array) -> np.ndarray:
    """Positions that sort distinct ids: as integers if all are integers, else as strings."""
    text = ids.to_pylist()
    if pc.all(pc.match_substring_regex(ids, "^-?[0-9]{1,18}$")).as_py():
        keys: list[Any] = [(int(t), t) for t in text]  # the text settles "7" against "007"
        return np.array(sorted(range(len(text)), key=keys.__getitem__), dtype=np.int64)
    return np.array(sorted(range(len(text)), key=text.__getitem__), dtype=np.int64)


def _order_within(group: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... inside each group, in row order."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0])
    position = np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))
    out = np.empty(len(group), dtype=np.int64)
    out[order] = position
    return out


def _unique_pairs(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, origin: Origin, duplicates: Duplicates
) -> np.ndarray:
    """Rows to keep, int64 in row order."""
    rows = np.arange(len(user), dtype=np.int64)
    pair = user.astype(np.int64) * (int(item.max()) + 1) + item
    order = np.lexsort((rows, time, pair)) if duplicates == "last" else np.argsort(pair, kind="stable")
    again = pair[order][1:] == pair[order][:-1]
    if not again.any():
        return rows
    if duplicates == "last":
        return np.sort(order[np.r_[~again, True]])
    second = np.flatnonzero(again)[np.argmin(order[1:][again])]
    raise DataError(
        f"repeats the user and item of row {origin.first_row + int(order[second])}",
        where=origin.row(order[second + 1]),
        mend='Remove one of the two rows. In Python, curerec.load(..., duplicates="last") keeps the latest.',
    )


def checked_titles(titles: dict[str, str] | pa.Table, origin: Origin) -> pa.Table:
    """Titles by item in the order of the ids, one an item, none empty."""
    if isinstance(titles, dict):
        names, texts = (columns.as_array(list(part), origin) for part in (titles, titles.values()))
        titles = pa.table({"item": names, "title": texts})
    item, title = columns.ids(titles["item"], "item id", origin), columns.as_array(titles["title"], origin)
    if len(item) == 0:
        raise DataError("holds no title", where=origin.file, mend="Give a file of items and their titles.")
    mend = "Give every item a title."
    if not columns.is_text(title):
        raise DataError("title column holds no text", where=origin.file, mend=mend)
    title = title.cast(pa.string())
    columns.refuse(pc.is_null(title), "title is missing", origin, mend)
    columns.refuse(pc.equal(pc.utf8_trim_whitespace(title), ""), "title is empty", origin, mend)
    _, rank = _ranked(item)
    order = np.argsort(rank, kind="stable")
    again = rank[order][1:] == rank[order][:-1]
    if again.any():
        second = np.flatnonzero(again)[np.argmin(order[1:][again])]
        raise DataError(
            f"repeats the item of row {origin.first_row + int(order[second])}",
            where=origin.row(order[second + 1]),
            mend="Keep one title an item.",
        )
    return pa.table({"item": item.take(order), "title": title.take(order)})


def require_titles(item: pa.Array, catalogue: pa.Table, origin: Origin, titles_origin: Origin) -> None:
    """Refuse the first rating of an item without a title."""
    known = pc.is_in(item, value_set=catalogue["item"].combine_chunks())
    mend = f"Add the item to {titles_origin.file}, or remove the row."
    columns.refuse(pc.invert(known), f"rates an item that has no title in {titles_origin.file}", origin, mend)
