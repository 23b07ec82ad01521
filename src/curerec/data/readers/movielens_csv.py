"""MovieLens-20M, -25M, latest: ``ratings.csv`` and ``movies.csv`` with a header."""

from __future__ import annotations

from pathlib import Path

from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles, neighbour

RATINGS = {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"}
TITLES = {"item": "movieId", "title": "title"}


def find(path: Path) -> list[Path]:
    """``ratings.csv``, or any csv with ``userId``."""
    file = path / "ratings.csv" if path.is_dir() else path
    return [file] if file.suffix == ".csv" and "userId" in text.header(file) else []


def beside(ratings: Path) -> Path | None:
    """``movies.csv``."""
    return neighbour(ratings, "movies.csv")


def ratings(path: Path) -> Columns:
    """userId, movieId, rating (halves allowed), timestamp."""
    rows = text.pick(text.table(path, text.content(path), ",", quoted=True), path, ",", RATINGS)
    return Columns(rows["user"], rows["item"], rows["rating"], rows["time"], text.after_header(path))


def titles(path: Path) -> Titles:
    """movieId, title; genres are left out."""
    rows = text.pick(text.table(path, text.content(path), ",", quoted=True), path, ",", TITLES)
    return Titles(rows, text.after_header(path))


READER = Reader(
    "MovieLens csv: ratings.csv (userId, movieId, rating, timestamp), movies.csv",
    find,
    beside,
    ratings,
    titles,
)
