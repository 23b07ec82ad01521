"""RecBole atomic files: ``NAME.inter`` and ``NAME.item``, tabs, header ``field:type``."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from curerec.data.columns import time_column
from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles, neighbour

RATINGS = {"user": "user_id", "item": "item_id", "rating": "rating"}
#: What RecBole's data sets call a title, first match wins.
TITLE_FIELDS = ("title", "movie_title", "book_title", "item_title", "name", "item_name", "product_title")
YEAR_FIELDS = ("release_year", "year", "movie_year")


def find(path: Path) -> list[Path]:
    """Every ``*.inter``."""
    files = sorted(path.glob("*.inter")) if path.is_dir() else [path]
    return [file for file in files if file.suffix == ".inter"]


def beside(ratings: Path) -> Path | None:
    """The ``.item`` of the same name."""
    return neighbour(ratings, f"{ratings.stem}.item")


def _rows(path: Path) -> pa.Table:
    rows = text.table(path, text.content(path), "\t")
    return rows.rename_columns([name.split(":")[0] for name in rows.column_names])


def ratings(path: Path) -> Columns:
    """user_id, item_id, rating and, if there, timestamp or time."""
    rows = _rows(path)
    columns = text.pick(rows, path, "\t", RATINGS)
    time = time_column(rows.column_names, path.name, ("timestamp", "time"))
    times = rows[time] if time else None
    return Columns(columns["user"], columns["item"], columns["rating"], times, text.after_header(path))


def titles(path: Path) -> Titles:
    """item_id and title, with the year behind it where it has a field of its own: ``Toy Story (1995)``."""
    rows = _rows(path)
    named = [name for name in TITLE_FIELDS if name in rows.column_names]
    needed = {"item": "item_id", "title": named[0] if named else "title"}
    columns = text.pick(rows, path, "\t", needed)
    years = [name for name in YEAR_FIELDS if name in rows.column_names]
    if years:
        title, year = columns["title"], rows[years[0]]
        dated = pc.binary_join_element_wise(title, pc.binary_join_element_wise("(", year, ")", ""), " ")
        # Not behind an empty title, which must stay an error, and not if it is no year ("unknown").
        add = pc.and_(
            pc.match_substring_regex(year, "^[0-9]{4}$"), pc.not_equal(pc.utf8_trim_whitespace(title), "")
        )
        columns = columns.set_column(1, "title", pc.if_else(add, dated, title))
    return Titles(columns, text.after_header(path))


READER = Reader("RecBole atomic files: NAME.inter, NAME.item", find, beside, ratings, titles)
