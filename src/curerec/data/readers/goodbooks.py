"""goodbooks-10k: ``ratings*.csv`` without times (rows are in time order) and ``books.csv``."""

from __future__ import annotations

from pathlib import Path

from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles
from curerec.errors import DataError

RATINGS = {"user": "user_id", "item": "book_id", "rating": "rating"}
TITLES = {"item": "book_id", "title": "title"}


def find(path: Path) -> tuple[Path, Path | None] | None:
    """``ratings.csv`` (or the only ``ratings*.csv`` with ``book_id``) and ``books.csv``."""
    files = sorted(path.glob("ratings*.csv")) if path.is_dir() else [path]
    files = [
        file for file in files if file.suffix == ".csv" and {"user_id", "book_id"} <= set(text.header(file))
    ]
    if not files:
        return None
    whole = [file for file in files if file.name == "ratings.csv"]
    if len(files) > 1 and not whole:
        raise DataError(
            "folder holds several ratings*.csv", where=path.name, mend="Give the path of one of them."
        )
    file = (whole or files)[0]
    beside = file.with_name("books.csv")
    return file, beside if beside.is_file() else None


def ratings(path: Path) -> Columns:
    """user_id, book_id, rating; the row order inside a user is the time."""
    rows = text.pick(text.table(path, text.content(path), ",", quoted=True), path, ",", RATINGS)
    return Columns(rows["user"], rows["item"], rows["rating"], None, text.after_header(path))


def titles(path: Path) -> Titles:
    """book_id, title; the other columns are left out."""
    rows = text.pick(text.table(path, text.content(path), ",", quoted=True), path, ",", TITLES)
    return Titles(rows, text.after_header(path))


READER = Reader("goodbooks-10k: ratings*.csv (user_id, book_id, rating), books.csv", find, ratings, titles)
