"""MovieLens-100K: ``u.data`` (tabs, no header) and ``u.item`` ('|', latin-1, title in the second field)."""

from __future__ import annotations

from pathlib import Path

from curerec.data.columns import Origin
from curerec.data.readers import text
from curerec.data.readers.base import Columns, Reader, Titles, named, neighbour


def find(path: Path) -> list[Path]:
    """``u.data``."""
    return named(path, "u.data")


def beside(ratings: Path) -> Path | None:
    """``u.item``."""
    return neighbour(ratings, "u.item")


def ratings(path: Path) -> Columns:
    """User, item, rating, seconds since 1970."""
    rows = text.table(path, text.content(path), "\t", names=["user", "item", "rating", "time"])
    return Columns(rows["user"], rows["item"], rows["rating"], rows["time"], Origin(path.name))


def titles(path: Path) -> Titles:
    """Item and title; dates, address and genres are left out."""
    raw = text.content(path, latin1=True)
    n_fields = raw.split(b"\n", 1)[0].count(b"|") + 1
    names = ["item", "title", *(f"field_{i}" for i in range(3, max(n_fields, 2) + 1))]
    rows = text.table(path, raw, "|", names=names)
    return Titles(rows.select(["item", "title"]), Origin(path.name))


READER = Reader("MovieLens-100K: u.data, u.item", find, beside, ratings, titles)
