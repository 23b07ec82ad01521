"""MovieLens-20M, -25M, latest: ``ratings.csv`` and ``movies.csv`` with a header."""

from __future__ import annotations

from pathlib import Path

from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles

RATINGS = {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"}
TITLES = {"item": "movieId", "title": "title"}


def find(path: Path) -> tuple[Path, Path | None] | None:
    """``ratings.csv`` (or any csv with ``userId``) and ``movies.csv``."""
    file = path / "ratings.csv" if path.is_dir() else path
    if file.suffix != ".csv" or "userId" not in text.header(file):
        return None
    beside = file.with_name("movies.csv")
    return file, beside if beside.is_file() else None


def ratings(path: Path) -> Columns:
    """userId, movieId, rating (halves allowed), timestamp."""
    rows = text.pick(text.table(path, text.content(path), ",", quoted=True), path, ",", RATINGS)
    return Columns(rows["user"], rows["item"], rows["rating"], rows["time"], text.after_header(path))


def titles(path: Path) -> Titles:
    """movieId, title; genres are left out."""
    rows = text.pick(text.table(path, text.content(path), ",", quoted=True), path, ",", TITLES)
    return Titles(rows, text.after_header(path))


READER = Reader(
    "MovieLens csv: ratings.csv (userId, movieId, rating, timestamp), movies.csv", find, ratings, titles
)
