"""Your own data: csv, tsv or parquet of user, item, rating and maybe time, and another of item, title."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from curerec.data import parquet
from curerec.data.columns import Origin, time_column
from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles
from curerec.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".parquet")
RATINGS = {"user": "user", "item": "item", "rating": "rating"}
TITLES = {"item": "item", "title": "title"}


def find(path: Path) -> list[Path]:
    """Every ``interactions`` or ``ratings`` that ends in .csv, .tsv or .parquet.

    What ends in .parquet may be a folder of parts, as Spark and others write it.
    """
    folder = path.is_dir() and path.suffix != ".parquet"
    files = _named(path, ("interactions", "ratings")) if folder else [path]
    return [file for file in files if file.suffix in SUFFIXES]


def beside(ratings: Path) -> Path | None:
    """``titles`` or ``items``, of the ratings' own ending where there is one.

    Raises:
        DataError: there are several that hold titles.
    """
    files = _named(ratings.parent, ("titles", "items"))
    files = [file for file in files if file.suffix == ratings.suffix] or files
    if len(files) > 1:
        files = [file for file in files if _titled(file)] or files
    if len(files) > 1:
        several = ", ".join(file.name for file in files)
        mend = "Keep one of them, or `curerec pack --titles FILE`."
        raise DataError(f"several titles files beside it ({several})", where=ratings.name, mend=mend)
    return files[0] if files else None


def _named(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    files = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    return [file for file in files if file.is_file() or (file.suffix == ".parquet" and file.is_dir())]


def _titled(file: Path) -> bool:
    """Whether it has the columns of titles: others may hold what else is known of the items."""
    if file.suffix != ".parquet":
        return set(TITLES) <= set(text.header(file, SEPARATORS[file.suffix]))
    try:
        parquet.opened(file, tuple(TITLES))
    except DataError:
        return False
    return True


def _rows(path: Path, needed: dict[str, str], *, timed: bool = False) -> tuple[pa.Table, Origin]:
    """The needed columns and, where it is timed and there, time."""
    if path.suffix == ".parquet":
        return _parquet(path, needed, timed), Origin(path.name)
    separator = SEPARATORS.get(path.suffix, ",")
    rows = text.table(path, text.content(path), separator, quoted=True)
    time = time_column(rows.column_names, path.name) if timed else None
    return text.pick(rows, path, separator, needed | ({time: time} if time else {})), text.after_header(path)


def _parquet(path: Path, needed: dict[str, str], timed: bool) -> pa.Table:
    data = parquet.opened(path, tuple(needed))
    time = time_column(data.schema.names, path.name) if timed else None
    if timed and time is None:
        parquet.refuse_parts(data, path)
    with parquet.reading(path):
        return data.to_table(columns=[*needed, *([time] if time else [])])


def ratings(path: Path) -> Columns:
    """user, item, rating and, if there, time. Row 1 is the header in csv, the first record in parquet."""
    rows, origin = _rows(path, RATINGS, timed=True)
    times = rows["time"] if "time" in rows.column_names else None
    return Columns(rows["user"], rows["item"], rows["rating"], times, origin)


def titles(path: Path) -> Titles:
    """item, title."""
    return Titles(*_rows(path, TITLES))


READER = Reader(
    "csv, tsv or parquet: interactions or ratings (user, item, rating, maybe time), titles or items (item, "
    "title)",
    find,
    beside,
    ratings,
    titles,
)
