"""The one table of who rated what, in memory or mapped from disk. No torch here."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

CHUNK = 1 << 20  # rows at a time


@dataclass(frozen=True)
class Interactions:
    """The one internal table of a catalogue and what its users rated.

    Built by :func:`curerec.data.table.interactions`, which sorts and checks, or opened by
    :func:`curerec.data.packed.open_packed`, which maps files; do not build by hand.

    Attributes:
        ratings: columns ``user`` and ``item`` (string, or dictionary of string: of the distinct users in
            order of first row, of the items of ``titles``), ``rating`` (float64), ``time`` (int64, seconds or
            any increasing number), sorted by (user, time, item) in id order, one row an interaction. "Row"
            elsewhere in the package means an index into this table.
        titles: columns ``item`` (string), ``title`` (string); every rated item has exactly one title.
        name: e.g. ``ml-100k``.
        source: where it came from, for the record (``official``, ``wheel recbole 1.2.1``, ``local file``).
        item_index: where each item's rows are known without a pass over all: first entry by item code, int64
            [n_items + 1], and rows, ascending for each item, int64 [n_rows].
        mapped: arrays of the files that columns are mapped from, if they are.
    """

    ratings: pa.Table = field(repr=False)
    titles: pa.Table = field(repr=False)
    name: str
    source: str
    item_index: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False, compare=False)
    mapped: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)

    @cached_property
    def user_ids(self) -> pa.Array:
        """Distinct user ids, [n_users] of string, in order of first row."""
        return self._users.dictionary

    @cached_property
    def users(self) -> np.ndarray:
        """The same, [n_users] of str."""
        return np.asarray(self.user_ids.to_pylist(), dtype=object)

    @cached_property
    def item_ids(self) -> pa.Array:
        """Distinct item ids of the catalogue, [n_items] of string, in the order of ``titles``."""
        return _whole(self.titles["item"])

    @cached_property
    def items(self) -> np.ndarray:
        """The same, [n_items] of str."""
        return np.asarray(self.item_ids.to_pylist(), dtype=object)

    @cached_property
    def user_code(self) -> np.ndarray:
        """Per row the index into :attr:`users`, int32 [n_rows]; ascending."""
        return self._users.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)

    @cached_property
    def item_code(self) -> np.ndarray:
        """Per row the index into :attr:`items`, int32 [n_rows]."""
        import pyarrow.compute as pc

        column = _whole(self.ratings["item"])
        known = pa.types.is_dictionary(column.type)
        codes = column.indices if known else pc.index_in(column, value_set=self.item_ids)
        return codes.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)

    @cached_property
    def rating(self) -> np.ndarray:
        """float64 [n_rows]."""
        return _whole(self.ratings["rating"]).to_numpy(zero_copy_only=False)

    @cached_property
    def time(self) -> np.ndarray:
        """int64 [n_rows]."""
        return _whole(self.ratings["time"]).to_numpy(zero_copy_only=False)

    @cached_property
    def first(self) -> np.ndarray:
        """First row of each user, and the number of rows, int64 [n_users + 1]."""
        return np.r_[0, np.cumsum(np.bincount(self.user_code, minlength=len(self.user_ids)))].astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the sorted ratings table; equal whatever file format or row order it was read from."""
        return self.fingerprint_of()

    def fingerprint_of(self, rows: np.ndarray | None = None) -> str:
        """The fingerprint that the table of some rows alone would have.

        Args:
            rows: bool [n_rows]; None: of all.
        """
        import pyarrow.compute as pc

        digest = hashlib.sha256()
        # The lines "user\titem\trating\ttime\n", joined by arrow a slice at a time; ratings are written as
        # Python writes a float ("4.0"), which arrow does not, so each distinct one is written once.
        for start in range(0, len(self), CHUNK):
            part = self.ratings.slice(start, CHUNK)
            if rows is not None:
                part = part.filter(pa.array(rows[start : start + CHUNK]))
            user, item, rating, time = (_whole(part[n]) for n in ("user", "item", "rating", "time"))
            rating = pc.dictionary_encode(rating)
            rating = pa.array([str(value) for value in rating.dictionary.to_pylist()], pa.string()).take(
                rating.indices
            )
            fields = (user.cast(pa.string()), item.cast(pa.string()), rating, time.cast(pa.string()))
            lines = pc.binary_join_element_wise(*fields, "\t")
            digest.update("\n".join([*lines.to_pylist(), ""]).encode())
            self.let_go()
        return digest.hexdigest()

    @cached_property
    def titles_digest(self) -> str:
        """sha256 over the titles of the catalogue, which are in every prompt and not in the fingerprint."""
        return digest_of_titles(self.titles)

    def let_go(self) -> None:
        """Give the pages of mapped files that have been read back to the system; the files keep them."""
        release(*self.mapped)

    @cached_property
    def rated(self) -> np.ndarray:
        """bool [n_items]: somebody rated it."""
        if self.item_index is not None:
            return np.diff(self.item_index[0]) > 0
        return np.bincount(self.item_code, minlength=len(self.item_ids)) > 0

    def rows_of_users(self, codes: np.ndarray) -> np.ndarray:
        """Rows of some users, int64, ascending; no other row is read."""
        spans = [np.arange(self.first[c], self.first[c + 1]) for c in np.unique(codes)]
        return np.concatenate([np.zeros(0, np.int64), *spans])

    def rows_of_items(self, codes: np.ndarray) -> np.ndarray:
        """Rows of some items, int64, ascending; with :attr:`item_index` no other row is read."""
        if self.item_index is None:
            return np.flatnonzero(np.isin(self.item_code, codes))
        first, rows = self.item_index
        spans = [np.asarray(rows[first[c] : first[c + 1]]) for c in np.unique(codes)]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *spans]))

    def rows_of_pairs(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Row of each pair of codes, int64 [n], -1 where there is none; only these users' rows are read.

        Args:
            users, items: codes, int [n]; a negative one is in no row.
        """
        found = np.full(len(users), -1, np.int64)
        for k, (u, i) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
            if u >= 0 and i >= 0:
                at = np.flatnonzero(self.item_code[self.first[u] : self.first[u + 1]] == i)
                found[k] = self.first[u] + at[0] if len(at) else -1
        return found

    @cached_property
    def _users(self) -> Any:
        column = _whole(self.ratings["user"])
        return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()

    def __len__(self) -> int:
        return self.ratings.num_rows


def digest_of_titles(titles: pa.Table) -> str:
    """sha256 over the titles of a catalogue, in its order.

    Args:
        titles: columns ``item`` and ``title``.
    """
    lines = titles["title"].to_pylist()
    text = "\n".join(lines)
    if text.count("\n") >= len(lines) > 0:  # one holds a line end, so lines alone do not say where titles end
        text += "\0" + ",".join(str(len(line)) for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def release(*arrays: np.ndarray) -> None:
    """Let go of the pages of mapped files that have been read or written; other arrays have none."""
    for array in arrays:
        file = getattr(array, "_mmap", None)
        if file is not None and hasattr(mmap, "MADV_DONTNEED"):
            file.madvise(mmap.MADV_DONTNEED)


def coded(codes: np.ndarray, values: pa.Array) -> pa.DictionaryArray:
    """A column of ids as numbers into the distinct ones; arrays of int32 are not copied."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32, copy=False)), values, safe=False)


def _whole(column: pa.ChunkedArray) -> Any:
    """One array of a column, without a copy where it has one chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
