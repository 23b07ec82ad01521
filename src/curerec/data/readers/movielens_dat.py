"""MovieLens-1M and -10M: ``ratings.dat`` and ``movies.dat``, fields separated by '::', latin-1, no header."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from curerec.data.columns import Origin
from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles, named, neighbour
from curerec.errors import DataError

#: Stands for '::' while pyarrow reads, which takes one character only; no text file holds it on purpose.
UNIT = "\x1f"


def find(path: Path) -> list[Path]:
    """``ratings.dat``."""
    return named(path, "ratings.dat")


def beside(ratings: Path) -> Path | None:
    """``movies.dat``."""
    return neighbour(ratings, "movies.dat")


def ratings(path: Path) -> Columns:
    """User, item, rating, seconds since 1970."""
    raw = text.content(path)
    if UNIT.encode() in raw:
        row = raw.count(b"\n", 0, raw.index(UNIT.encode())) + 1
        raise DataError("row holds a control character", where=f"{path.name}, row {row}", mend="Remove it.")
    rows = text.table(path, raw.replace(b"::", UNIT.encode()), UNIT, names=["user", "item", "rating", "time"])
    return Columns(rows["user"], rows["item"], rows["rating"], rows["time"], Origin(path.name))


def titles(path: Path) -> Titles:
    """Item and title; genres are left out.

    The item ends at the first '::' and the genres begin after the last, so that a title may hold '::' itself.
    """
    items, names = [], []
    for number, line in enumerate(text.content(path, latin1=True).decode("utf-8").split("\n"), start=1):
        item, first, rest = line.removesuffix("\r").partition("::")
        title, last, _genres = rest.rpartition("::")
        if not first or not last:
            raise DataError(
                "row is not split into item, title and genres",
                where=f"{path.name}, row {number}",
                mend="This format separates columns by '::'.",
            )
        items.append(item)
        names.append(title)
    return Titles(pa.table({"item": items, "title": names}), Origin(path.name))


READER = Reader("MovieLens-1M: ratings.dat, movies.dat", find, beside, ratings, titles)
