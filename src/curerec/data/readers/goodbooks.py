"""goodbooks-10k: ``ratings*.csv`` and ``books.csv``. As published without times, rows in time order."""

from __future__ import annotations

from pathlib import Path

from curerec.data.columns import time_column
from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles, neighbour

RATINGS = {"user": "user_id", "item": "book_id", "rating": "rating"}
TITLES = {"item": "book_id", "title": "title"}


def find(path: Path) -> list[Path]:
    """``ratings.csv``, else every ``ratings*.csv``, with ``user_id`` and ``book_id``."""
    files = sorted(path.glob("ratings*.csv")) if path.is_dir() else [path]
    files = [
        file for file in files if file.suffix == ".csv" and {"user_id", "book_id"} <= set(text.header(file))
    ]
    return [file for file in files if file.name == "ratings.csv"] or files


def beside(ratings: Path) -> Path | None:
    """``books.csv``."""
    return neighbour(ratings, "books.csv")


def ratings(path: Path) -> Columns:
    """user_id, book_id, rating and, if there, time or timestamp; else the row order of a user is the time."""
    table = text.table(path, text.content(path), ",", quoted=True)
    time = time_column(table.column_names, path.name, ("time", "timestamp"))
    rows = text.pick(table, path, ",", RATINGS | ({"time": time} if time else {}))
    times = rows["time"] if time else None
    return Columns(rows["user"], rows["item"], rows["rating"], times, text.after_header(path))


def titles(path: Path) -> Titles:
    """book_id, title; the other columns are left out."""
    rows = text.pick(text.table(path, text.content(path), ",", quoted=True), path, ",", TITLES)
    return Titles(rows, text.after_header(path))


READER = Reader(
    "goodbooks-10k: ratings*.csv (user_id, book_id, rating), books.csv", find, beside, ratings, titles
)
