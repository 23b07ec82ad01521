"""Interactions past memory: columns on disk, sorted by user and time, read where they are touched."""

from __future__ import annotations

import itertools
import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from curerec.data.output import replacing
from curerec.data.splits import LIKED
from curerec.errors import DataError

CARD = "curerec-store.json"
FORMAT = "curerec-store/1"
CHUNK = 1 << 20  # rows read at a time
BUCKET = 1 << 22  # rows sorted at a time: about 250 MB
COLUMNS = {"user": np.int32, "item": np.int32, "rating": np.float32, "time": np.int64}


@dataclass(frozen=True)
class Store:
    """A table of interactions on disk.

    Rows are in the order of :class:`curerec.records.Interactions`: by user, then time, then item, users and
    items numbered by their first appearance in the sorted ids. Arrays are memory-mapped: what is not indexed
    is not read.

    Attributes:
        path: folder that :func:`build` wrote.
        n_users, n_items, n_rows: sizes.
    """

    path: Path
    n_users: int
    n_items: int
    n_rows: int

    def column(self, name: str) -> np.ndarray:
        """``user``, ``item`` (codes), ``rating``, ``time``; [n_rows]."""
        return self.array(name)

    def array(self, name: str) -> np.ndarray:
        """Any of the store's arrays, memory-mapped."""
        return np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    @cached_property
    def first(self) -> np.ndarray:
        """First row of each user, and the number of rows, int64 [n_users + 1]."""
        return self.array("first")

    @cached_property
    def item_first(self) -> np.ndarray:
        """First entry of each item in ``item_rows``, int64 [n_items + 1]."""
        return self.array("item_first")

    @cached_property
    def item_rows(self) -> np.ndarray:
        """Rows by item, ascending for each, int64 [n_rows]."""
        return self.array("item_rows")

    def ids(self, kind: str) -> pa.Array:
        """Ids of ``users`` or ``items`` by code, as strings."""
        return pq.read_table(self.path / f"{kind}.parquet")["id"].combine_chunks()


def open_store(folder: str | Path) -> Store:
    """A store that :func:`build` wrote.

    Raises:
        DataError: it is none.
    """
    path = Path(folder)
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError
        return Store(path, *(int(card[k]) for k in ("n_users", "n_items", "n_rows")))
    except (OSError, ValueError, KeyError, TypeError):
        mend = "Make it with curerec.data.store.build"
        raise DataError(f"holds no {CARD} of format {FORMAT}", where=path.name, mend=mend) from None


def build(source: str | Path, folder: str | Path, *, chunk: int = CHUNK, bucket: int = BUCKET) -> Store:
    """Read ratings of any size into a store.

    Two passes over the file: the ids, then the rows, which are dealt out to ranges of users and sorted range
    by range. Memory is that of the ids and of one range, whatever the number of rows.

    Args:
        source: parquet file, or folder of such, with columns user, item, rating, time.
        folder: to write; replaced if it is a store.
        chunk: rows read at a time.
        bucket: rows sorted at a time, on average; one user's rows stay together.

    Raises:
        DataError: no such columns, an empty cell, or a rating twice (the message names no id).
        StorageError: the disk is full.
    """
    source = Path(source)
    data = _dataset(source)
    with replacing(Path(folder), marker=CARD) as stage:
        ids = {name: _ids(data, name, chunk, source) for name in ("user", "item")}
        for name, values in ids.items():
            text = pa.table({"id": values.cast(pa.string())})
            pq.write_table(text, stage / f"{name}s.parquet")
        counts = np.zeros(len(ids["user"]), np.int64)
        for codes in _codes(data, ["user"], ids, chunk):
            counts += np.bincount(codes["user"], minlength=len(counts))
        first = np.r_[0, np.cumsum(counts)]
        np.save(stage / "first.npy", first)
        arrays = {
            name: np.lib.format.open_memmap(stage / f"{name}.npy", "w+", dtype, (int(first[-1]),))
            for name, dtype in COLUMNS.items()
        }
        bounds = _ranges(first, bucket)
        _deal_out(data, ids, arrays, first, bounds, chunk)
        _sort(arrays, first, bounds, source)
        for array in arrays.values():
            array.flush()
        _index(stage, arrays["item"], len(ids["item"]), chunk)
        sizes = {"n_users": len(counts), "n_items": len(ids["item"]), "n_rows": int(first[-1])}
        (stage / CARD).write_text(json.dumps({"format": FORMAT, **sizes}) + "\n", encoding="utf-8")
        del arrays
    return open_store(folder)


def _dataset(source: Path) -> Any:
    try:
        data = ds.dataset(source, format="parquet")
        missing = set(COLUMNS) - set(data.schema.names)
    except (pa.ArrowInvalid, OSError):
        raise DataError(
            "is no parquet file or folder of such", where=source.name, mend="Check the path"
        ) from None
    if missing:
        raise DataError(
            f"lacks the column {min(missing)}", where=source.name, mend="It needs user, item, ..."
        )
    return data


def _batches(data: Any, columns: list[str], chunk: int) -> Iterator[pa.RecordBatch]:
    yield from data.to_batches(
        columns=columns, batch_size=chunk, batch_readahead=1, fragment_readahead=1, use_threads=False
    )


def _ids(data: Any, name: str, chunk: int, source: Path) -> pa.Array:
    """Distinct ids in the order of their text, as the table in memory sorts them."""
    known: pa.Array | None = None
    for batch in _batches(data, [name], chunk):
        column = batch.column(0)
        if column.null_count:
            raise DataError(f"has an empty cell in column {name}", where=source.name, mend="Fill or drop it")
        new = pc.unique(column)
        known = new if known is None else pc.unique(pa.concat_arrays([known, new]))
    if known is None or not len(known):
        raise DataError("holds no rows", where=source.name, mend="Give ratings")
    return known.take(pc.sort_indices(known.cast(pa.string())))


def _codes(
    data: Any, columns: list[str], ids: dict[str, pa.Array], chunk: int
) -> Iterator[dict[str, np.ndarray]]:
    for batch in _batches(data, columns, chunk):
        out = {}
        for name in columns:
            column = batch.column(batch.schema.names.index(name))
            if name in ids:
                column = pc.index_in(column, value_set=ids[name])
            out[name] = column.to_numpy(zero_copy_only=False).astype(COLUMNS[name], copy=False)
        yield out


def release(*arrays: np.ndarray) -> None:
    """Let go of the pages of memory-mapped files that have been read or written; the files keep them."""
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _ranges(first: np.ndarray, bucket: int) -> np.ndarray:
    """First users of ranges that have about ``bucket`` rows each, and the number of users."""
    bounds = [0]
    while bounds[-1] < len(first) - 1:
        stop = int(np.searchsorted(first, first[bounds[-1]] + bucket, side="right")) - 1
        bounds.append(max(bounds[-1] + 1, stop))
    return np.asarray(bounds)


def _deal_out(
    data: Any,
    ids: dict[str, pa.Array],
    arrays: Mapping[str, np.ndarray],
    first: np.ndarray,
    bounds: np.ndarray,
    chunk: int,
) -> None:
    """Every row to the next free place of its range of users: each range is written front to back."""
    filled = first[bounds[:-1]].copy()
    for rows in _codes(data, list(COLUMNS), ids, chunk):
        group = np.searchsorted(bounds, rows["user"], side="right") - 1
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group, minlength=len(filled))
        start = 0
        for g in np.flatnonzero(sizes):
            part = order[start : start + sizes[g]]
            for name, array in arrays.items():
                array[filled[g] : filled[g] + sizes[g]] = rows[name][part]
            filled[g] += sizes[g]
            start += sizes[g]
        release(*arrays.values())


def _sort(arrays: Mapping[str, np.ndarray], first: np.ndarray, bounds: np.ndarray, source: Path) -> None:
    for span in (slice(first[a], first[b]) for a, b in itertools.pairwise(bounds)):
        part = {name: np.array(array[span]) for name, array in arrays.items()}
        twice = np.lexsort((part["item"], part["user"]))
        same = (np.diff(part["user"][twice]) == 0) & (np.diff(part["item"][twice]) == 0)
        if same.any():
            mend = "Keep one rating of an item by a user"
            raise DataError("has a rating twice", where=source.name, mend=mend)
        order = np.lexsort((part["item"], part["time"], part["user"]))
        for name, array in arrays.items():
            array[span] = part[name][order]
        release(*arrays.values())


def _index(stage: Path, item: np.ndarray, n_items: int, chunk: int) -> None:
    """Rows by item: a counting sort, a chunk at a time."""
    counts = np.zeros(n_items, np.int64)
    for k in range(0, len(item), chunk):
        counts += np.bincount(item[k : k + chunk], minlength=n_items)
    first = np.r_[0, np.cumsum(counts)]
    np.save(stage / "item_first.npy", first)
    rows = np.lib.format.open_memmap(stage / "item_rows.npy", "w+", np.int64, (len(item),))
    filled = first[:-1].copy()
    for k in range(0, len(item), chunk):
        codes = np.asarray(item[k : k + chunk])
        order = np.argsort(codes, kind="stable")
        sorted_codes = codes[order]
        starts = np.r_[0, np.flatnonzero(np.diff(sorted_codes)) + 1]
        sizes = np.diff(np.r_[starts, len(codes)])
        place = filled[sorted_codes] + np.arange(len(codes)) - np.repeat(starts, sizes)
        filled[sorted_codes[starts]] += sizes
        rows[place] = order + k
        release(item, rows)
    rows.flush()


def liked(store: Store, rows: np.ndarray) -> np.ndarray:
    """Which of some rows are likes, bool."""
    return store.column("rating")[rows] >= LIKED
