"""Packing ratings larger than memory: parquet in, a piece at a time, columns on disk out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curerec.data import columns, parquet
from curerec.data.columns import Origin
from curerec.data.edited import ranges
from curerec.data.output import replacing
from curerec.data.packed import CARD, finish, new_columns, open_packed
from curerec.data.table import SCALE, checked_titles, id_order, require_titles
from curerec.errors import DataError
from curerec.interactions import CHUNK, Interactions, release

BUCKET = 1 << 22  # rows sorted at a time: about 250 MB
NEEDED = ("user", "item", "rating")


def pack(
    source: Path,
    titles: pa.Table,
    folder: str | Path,
    *,
    name: str,
    titles_origin: Origin | None = None,
    scale: tuple[float, float] = SCALE,
    chunk: int = CHUNK,
    bucket: int = BUCKET,
    progress: Callable[[int, int], None] | None = None,
) -> Interactions:
    """Put ratings of any size into columns on disk, a piece at a time.

    Three passes over the file: the ids, how many rows each user has, and the rows, which are dealt out to
    ranges of users and sorted range by range; one more where times are stamps finer than seconds. Memory is
    that of the ids and of one range, whatever the number of rows. The table is the one that
    :func:`curerec.data.table.interactions` makes of the same rows.

    Args:
        source: parquet file, or folder of such, with columns user, item, rating and, if there, time; without
            times one part.
        titles: columns ``item`` and ``title``.
        folder: to write; replaced if it is a packed one.
        name: of the data set, for the record.
        titles_origin: file of the titles, for messages.
        scale: lowest and highest rating allowed.
        chunk: rows read at a time.
        bucket: rows sorted at a time, on average; one user's rows stay together.
        progress: told (rows passed over, rows to pass over in all).

    Raises:
        DataError: as for :func:`curerec.data.table.interactions`; a pair that is there twice is refused.
        StorageError: the disk is full.
    """
    rows = _Rows(source, chunk, progress)
    titles_origin = titles_origin or Origin("titles")
    catalogue = checked_titles(titles, titles_origin)
    with replacing(Path(folder), marker=CARD) as stage:
        users, user_of = rows.ids("user", "user id")
        items, item_of = rows.ids("item", "item id")
        item_code = columns.codes_in(catalogue["item"].combine_chunks(), items)
        if (item_code < 0).any():
            for batch, origin in rows.batches(["item"]):
                require_titles(
                    columns.ids(batch["item"], "item id", origin), catalogue, origin, titles_origin
                )
        code_of = {"user": user_of, "item": _through(item_of, item_code)}
        # Rows of one time are ordered by the rank of their item among those rated.
        rank = np.full(len(catalogue), -1, np.int32)
        rank[item_code] = np.arange(len(item_code), dtype=np.int32)
        counts = np.zeros(len(users), np.int64)
        for batch, _ in rows.batches(["user"]):
            counts += np.bincount(_coded(batch["user"], code_of["user"]), minlength=len(counts))
        first = np.r_[0, np.cumsum(counts)]
        arrays = new_columns(stage, int(first[-1]))
        bounds = ranges(first, bucket)
        _deal_out(rows, code_of, arrays, first, bounds, scale)
        _sort(rows, arrays, first, bounds, rank)
        finish(stage, arrays, users, catalogue, first, name=name, source="local file", chunk=chunk)
    return open_packed(folder)


class _Rows:
    """A parquet file, or a folder of such, read a piece at a time."""

    PASSES = 5  # users, items, rows of each user, the rows themselves, sorting

    def __init__(self, source: Path, chunk: int, progress: Callable[[int, int], None] | None) -> None:
        self.source, self.chunk, self.progress, self.done = source, chunk, progress, 0
        self.data = parquet.opened(source, NEEDED)
        self.timed = columns.time_column(self.data.schema.names, source.name) is not None
        if not self.timed:
            parquet.refuse_parts(self.data, source)
        stamps = self.timed and columns.finer_than_seconds(self.data.schema.field("time").type)
        self.total = (self.PASSES + stamps) * self.data.count_rows()
        # One unit for all pieces: where some are of whole seconds others need not be.
        pieces = self.batches(["time"]) if stamps else ()
        self.finer = not all([columns.whole_seconds(batch["time"]) for batch, _ in pieces])

    def batches(self, names: list[str]) -> Iterator[tuple[pa.RecordBatch, Origin]]:
        """Batches in the order of the file, each with where its rows are."""
        row = 1
        for batch in self._read(names):
            if len(batch):
                yield batch, Origin(self.source.name, row)
            row += len(batch)
            self.passed(len(batch))

    def _read(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        with parquet.reading(self.source):
            yield from self.data.to_batches(
                columns=names,
                batch_size=self.chunk,
                batch_readahead=1,
                fragment_readahead=1,
                use_threads=False,
            )

    def passed(self, n: int) -> None:
        """Tell that so many rows more were passed over."""
        self.done += n
        if self.progress:
            self.progress(self.done, self.total)

    def ids(self, name: str, what: str) -> tuple[pa.Array, tuple[pa.Array, np.ndarray]]:
        """The distinct ids in their order, and the values of the file with the place of each among them."""
        seen: pa.Array | None = None
        for batch, origin in self.batches([name]):
            values = _plain(batch[name])
            try:
                new = pc.unique(values)
            except pa.ArrowNotImplementedError:  # of lists and the like, which are no ids
                columns.ids(values, what, origin)
                raise
            if new.null_count:
                columns.ids(values, what, origin)  # says which row
            try:
                columns.ids(new, what, origin)
            except DataError:
                columns.ids(values, what, origin)
                raise
            seen = new if seen is None else pc.unique(pa.concat_arrays([seen, new]))
        if seen is None:
            raise DataError(
                "holds no interaction", where=self.source.name, mend="Give a file with at least one row."
            )
        text = columns.ids(seen, what, Origin(self.source.name))  # two values may be one id: blanks go
        distinct = pc.unique(text)
        ordered = distinct.take(pa.array(id_order(distinct)))
        return ordered, (seen, columns.codes_in(ordered, text))


def _plain(values: pa.Array) -> pa.Array:
    """Values of a type in which pyarrow looks things up."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    views = pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type)
    return values.cast(pa.string()) if views else values


def _through(of: tuple[pa.Array, np.ndarray], code: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    return of[0], code[of[1]]


def _coded(values: pa.Array, of: tuple[pa.Array, np.ndarray]) -> np.ndarray:
    """Codes of a column's values, int32 [n]."""
    return of[1][pc.index_in(_plain(values), value_set=of[0]).to_numpy(zero_copy_only=False)]


def _deal_out(
    rows: _Rows,
    code_of: Mapping[str, tuple[pa.Array, np.ndarray]],
    arrays: Mapping[str, np.ndarray],
    first: np.ndarray,
    bounds: np.ndarray,
    scale: tuple[float, float],
) -> None:
    """Every row to the next free place of its range of users: each range is written front to back."""
    filled = first[bounds[:-1]].copy()
    for batch, origin in rows.batches([*NEEDED, *(["time"] if rows.timed else [])]):
        values = {name: _coded(batch[name], of) for name, of in code_of.items()}
        values["rating"] = columns.ratings(batch["rating"], origin, scale)
        # Without times the order of a user's rows counts: their number in the file will do.
        number = np.arange(len(batch)) + origin.first_row
        values["time"] = columns.times(batch["time"], origin, keep_unit=rows.finer) if rows.timed else number
        group = np.searchsorted(bounds, values["user"], side="right") - 1
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group, minlength=len(filled))
        start = 0
        for g in np.flatnonzero(sizes):
            part = order[start : start + sizes[g]]
            for name, array in arrays.items():
                array[filled[g] : filled[g] + sizes[g]] = values[name][part]
            filled[g] += sizes[g]
            start += sizes[g]
        release(*arrays.values())


def _sort(
    rows: _Rows, arrays: Mapping[str, np.ndarray], first: np.ndarray, bounds: np.ndarray, rank: np.ndarray
) -> None:
    """Sort each range by user, time and item; where there are no times they become 0, 1, 2, ... of a user."""
    for span in (slice(first[a], first[b]) for a, b in itertools.pairwise(bounds)):
        part = {name: np.array(array[span]) for name, array in arrays.items()}
        twice = np.lexsort((part["item"], part["user"]))
        same = (np.diff(part["user"][twice]) == 0) & (np.diff(part["item"][twice]) == 0)
        if same.any():
            mend = "Keep one rating of an item by a user"
            raise DataError("has a rating of one item by one user twice", where=rows.source.name, mend=mend)
        order = np.lexsort((rank[part["item"]], part["time"], part["user"]))
        part = {name: values[order] for name, values in part.items()}
        if not rows.timed:
            part["time"] = np.arange(span.start, span.stop) - first[part["user"]]
        for name, array in arrays.items():
            array[span] = part[name]
        release(*arrays.values())
        rows.passed(span.stop - span.start)
