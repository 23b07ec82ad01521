"""Packed ratings: columns on disk, sorted by user and time, mapped and read where they are touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curerec.data.edited import Chunk, Edited, whole
from curerec.data.output import replacing
from curerec.errors import DataError
from curerec.interactions import CHUNK, Interactions, coded, release

CARD = "curerec-packed.json"
FORMAT = "curerec-packed/1"
COLUMNS = {"user": np.int32, "item": np.int32, "rating": np.float64, "time": np.int64}
TITLES, USERS = "titles.parquet", "users.parquet"


def is_packed(path: str | Path) -> bool:
    """Whether a folder is one that :func:`curerec.data.packing.pack` wrote."""
    return (Path(path) / CARD).is_file()


def open_packed(folder: str | Path) -> Interactions:
    """The table of a folder that :func:`curerec.data.packing.pack` or :func:`pack_table` wrote.

    Arrays are memory-mapped: what is not indexed is not read. The card's fingerprint is believed: taking it
    anew would read every row.

    Raises:
        DataError: it is none, or damaged.
    """
    path = Path(folder)
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ValueError
        n = int(card["n_rows"])
        files = {name: _mapped(path / f"{name}.npy", dtype, n) for name, dtype in COLUMNS.items()}
        users, titles = pq.read_table(path / USERS)["id"].combine_chunks(), pq.read_table(path / TITLES)
        files["first"] = _mapped(path / "first.npy", np.int64, len(users) + 1)
        files["item_first"] = _mapped(path / "item_first.npy", np.int64, len(titles) + 1)
        files["item_rows"] = _mapped(path / "item_rows.npy", np.int64, n)
        arrays = {name: np.asarray(file) for name, file in files.items()}
        table = pa.table(
            {
                "user": coded(arrays["user"], users),
                "item": coded(arrays["item"], titles["item"].combine_chunks()),
                "rating": pa.array(arrays["rating"]),
                "time": pa.array(arrays["time"]),
            }
        )
        made = Interactions(
            table,
            titles,
            str(card["name"]),
            str(card["source"]),
            item_index=(arrays["item_first"], arrays["item_rows"]),
            mapped=tuple(files.values()),
        )
        # What pack() counted and hashed stands where the table would do so on first use.
        vars(made).update(first=arrays["first"], fingerprint=str(card["fingerprint"]))
        return made
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        mend = "Make it anew with `curerec pack`"
        raise DataError(
            f"holds no {CARD} of format {FORMAT}, or is damaged", where=path.name, mend=mend
        ) from None


def _mapped(path: Path, dtype: Any, length: int) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != (length,) or array.dtype != dtype:
        raise ValueError
    return array


def pack_table(data: Interactions, folder: str | Path, *, chunk: int = CHUNK) -> Interactions:
    """The same of a table that is in memory.

    Raises:
        StorageError: the disk is full.
    """
    with replacing(Path(folder), marker=CARD) as stage:
        write_packed(stage, whole(data, chunk=chunk), chunk=chunk)
    return open_packed(folder)


def write_packed(
    stage: Path,
    edited: Edited,
    beside: Mapping[str, tuple[Any, Callable[[Chunk], np.ndarray]]] = {},
    *,
    chunk: int = CHUNK,
) -> None:
    """Fill a folder with the files of a table, a chunk at a time.

    Args:
        stage: an empty folder.
        edited: the table.
        beside: further columns, written as ``NAME.npy``: type, and values of a chunk.
        chunk: rows at a time of what is counted and hashed.

    Raises:
        OSError: the disk is full.
    """
    arrays = new_columns(stage, edited.n)
    more = {name: new_array(stage / f"{name}.npy", dtype, edited.n) for name, (dtype, _) in beside.items()}
    counts, at = np.zeros(len(edited.user_ids), np.int64), 0
    for rows in edited.chunks():
        part = slice(at, at + len(rows["row"]))
        for name, array in arrays.items():
            array[part] = rows[name]
        for name, array in more.items():
            array[part] = beside[name][1](rows)
        counts += np.bincount(rows["user"], minlength=len(counts))
        at = part.stop
        release(*arrays.values(), *more.values())
    for array in more.values():
        array.flush()
    first = np.r_[0, np.cumsum(counts)]
    finish(
        stage, arrays, edited.user_ids, edited.titles, first,
        name=edited.name, source=edited.source, chunk=chunk,
    )  # fmt: skip


def new_array(path: Path, dtype: Any, n: int) -> np.memmap[Any, Any]:
    """A new mapped array of a file whose room is taken at once.

    Without its room a write to a full disk ends the process by a signal that nothing can catch.

    Raises:
        OSError: the disk is full.
    """
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", dtype, (n,))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def new_columns(stage: Path, n: int) -> dict[str, np.ndarray]:
    """New mapped arrays of all columns in a folder, [n] each."""
    return {name: new_array(stage / f"{name}.npy", dtype, n) for name, dtype in COLUMNS.items()}


def finish(
    stage: Path,
    arrays: Mapping[str, Any],
    users: pa.Array,
    titles: pa.Table,
    first: np.ndarray,
    *,
    name: str,
    source: str,
    chunk: int,
) -> None:
    """Write what stands beside the columns: ids, titles, the rows of users and of items, and the card."""
    for array in arrays.values():
        array.flush()
    np.save(stage / "first.npy", first)
    # Not compressed: who searches a disk for what was deleted finds it where it is.
    for file, rows in ((USERS, pa.table({"id": users})), (TITLES, titles)):
        pq.write_table(rows, stage / file, compression="none", use_dictionary=False)
    _index(stage, arrays["item"], len(titles), chunk)
    table = pa.table(
        {
            "user": coded(arrays["user"], users),
            "item": coded(arrays["item"], titles["item"].combine_chunks()),
            "rating": pa.array(arrays["rating"]),
            "time": pa.array(arrays["time"]),
        }
    )
    fingerprint = Interactions(table, titles, name, source, mapped=tuple(arrays.values())).fingerprint
    card = {
        "format": FORMAT,
        "name": name,
        "source": source,
        "n_rows": len(table),
        "fingerprint": fingerprint,
    }
    (stage / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _index(stage: Path, item: np.ndarray, n_items: int, chunk: int) -> None:
    """Rows by item: a counting sort, a chunk at a time."""
    counts = np.zeros(n_items, np.int64)
    for k in range(0, len(item), chunk):
        counts += np.bincount(item[k : k + chunk], minlength=n_items)
        release(item)
    first = np.r_[0, np.cumsum(counts)]
    np.save(stage / "item_first.npy", first)
    rows = new_array(stage / "item_rows.npy", np.int64, len(item))
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
