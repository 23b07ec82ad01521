"""Parquet files, and folders of parts as Spark and others write them, opened alike whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from curerec.errors import DataError


def opened(source: Path, needed: tuple[str, ...]) -> ds.Dataset:
    """A file or folder of parts, of which nothing but the columns' names is read yet.

    Folders ``user=7`` between it and its parts are a column ``user`` (partitions as Hive has them).

    Args:
        source: the file or folder.
        needed: columns that it must have.

    Raises:
        DataError: not there, no parquet, a column is missing, or the parts have different columns: one that a
            single part lacks would be taken to be empty there, or left out where that part is the first.
    """
    if not source.exists():
        raise DataError("file is not there", where=source.name, mend="Check the path.")
    try:
        # The folders above a single file are none of its own.
        data = ds.dataset(source, format="parquet", partitioning="hive" if source.is_dir() else None)
        different = {frozenset(part.physical_schema.names) for part in data.get_fragments()}
    except (pa.ArrowException, OSError):  # the message of pyarrow may quote bytes of the file
        mend = "Write it anew, or give a csv."
        raise DataError("is no parquet file or folder of such", where=source.name, mend=mend) from None
    for name in needed:
        if name not in data.schema.names:
            mend = f"It needs the columns {', '.join(needed)}"
            raise DataError(f"lacks the column {name}", where=source.name, mend=mend)
    if len(different) > 1:
        mend = "Write it anew, the same columns in all parts"
        raise DataError("has parts of different columns", where=source.name, mend=mend)
    return data


def refuse_parts(data: ds.Dataset, source: Path) -> None:
    """Refuse ratings without times in several parts: parts have no order, so their rows would have none.

    By their names ``part-10`` comes before ``part-2``.

    Raises:
        DataError: more than one part holds rows.
    """
    if sum(part.count_rows() > 0 for part in data.get_fragments()) > 1:
        mend = "Write the times as well, or the rows in order into one file."
        raise DataError("has several parts and no column time", where=source.name, mend=mend)


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Tell of rows that cannot be read, without the message of pyarrow, which may quote a value.

    Raises:
        DataError: the file is damaged, or two parts hold a column in types that do not fit.
    """
    try:
        yield
    except (pa.ArrowException, OSError):
        mend = "Write it anew, columns of one type in all parts"
        what = "is damaged, or its parts hold a column in different types"
        raise DataError(what, where=source.name, mend=mend) from None
