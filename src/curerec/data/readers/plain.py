"""Your own data: csv, tsv or parquet of user, item, rating and maybe time, and another of item, title."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from curerec.data.columns import Origin, refuse_other_times
from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles
from curerec.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".parquet")
RATINGS = {"user": "user", "item": "item", "rating": "rating"}
TITLES = {"item": "item", "title": "title"}


def find(path: Path) -> tuple[Path, Path | None] | None:
    """``interactions`` or ``ratings`` and ``titles`` or ``items``, ending in .csv, .tsv or .parquet.

    What ends in .parquet may be a folder of parts, as Spark and others write it.
    """
    folder = path.is_dir() and path.suffix != ".parquet"
    file = _named(path, ("interactions", "ratings")) if folder else path
    if file is None or file.suffix not in SUFFIXES:
        return None
    return file, _named(file.parent, ("titles", "items"))


def _named(folder: Path, stems: tuple[str, ...]) -> Path | None:
    files = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    there = (file for file in files if file.is_file() or (file.suffix == ".parquet" and file.is_dir()))
    return next(there, None)


def _rows(path: Path, needed: dict[str, str], optional: tuple[str, ...] = ()) -> tuple[pa.Table, Origin]:
    if path.suffix == ".parquet":
        rows, separator, origin = _parquet(path), ",", Origin(path.name)
        missing = [name for name in needed if name not in rows.column_names]
        if missing:  # a parquet file has no first row that names them
            mend = f"It needs the columns {', '.join(needed)}"
            raise DataError(f"lacks the column {missing[0]}", where=path.name, mend=mend)
    else:
        separator = SEPARATORS.get(path.suffix, ",")
        rows, origin = text.table(path, text.content(path), separator, quoted=True), text.after_header(path)
    there = {name: name for name in optional if name in rows.column_names}
    picked = text.pick(rows, path, separator, needed | there)
    if "time" in optional:
        refuse_other_times(rows.column_names, path.name)
    return picked, origin


def _parquet(path: Path) -> pa.Table:
    try:
        return pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise DataError("file is not there", where=path.name, mend="Check the path.") from None
    except (pa.ArrowInvalid, OSError):  # the message of pyarrow may quote bytes of the file
        raise DataError("is no parquet file", where=path.name, mend="Write it anew, or give a csv.") from None


def ratings(path: Path) -> Columns:
    """user, item, rating and, if there, time. Row 1 is the header in csv, the first record in parquet."""
    rows, origin = _rows(path, RATINGS, ("time",))
    times = rows["time"] if "time" in rows.column_names else None
    return Columns(rows["user"], rows["item"], rows["rating"], times, origin)


def titles(path: Path) -> Titles:
    """item, title."""
    return Titles(*_rows(path, TITLES))


READER = Reader(
    "csv, tsv or parquet: interactions or ratings (user, item, rating, maybe time), titles or items (item, "
    "title)",
    find,
    ratings,
    titles,
)
