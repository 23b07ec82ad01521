"""Small rating sets written in every format, and the places of their fields, so that a test can break one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curerec.data.readers import read
from curerec.errors import DataError

Row = tuple[str, str, float, int]

# Ids and titles no message could hold by chance.
RATINGS: list[Row] = [
    ("usr901", "itm77", 5.0, 30),
    ("usr901", "itm78", 3.0, 10),
    ("usr902", "itm77", 1.0, 20),
    ("usr902", "itm79", 4.0, 20),
    ("usr902", "itm78", 4.0, 40),
]
TITLES = {"itm77": "Hidden Harbour (1995)", "itm78": "Quiet Quarry (1996)", "itm79": "Velvet Vale (1997)"}
WORDS = [*{r[0] for r in RATINGS}, *TITLES, *TITLES.values(), "Hidden", "Quiet", "Velvet"]


@dataclass(frozen=True)
class Layout:
    """How a format is written.

    Attributes:
        ratings, titles: file names; ratings_header, title_header: their first rows, if any.
        separator, title_separator: between fields.
        timed: whether there is a time field, the fourth.
        title_row: fields of a title row.
    """

    ratings: str
    titles: str
    separator: str
    title_separator: str
    ratings_header: tuple[str, ...] = ()
    title_header: tuple[str, ...] = ()
    timed: bool = True
    title_row: Callable[[str, str], tuple[str, ...]] = lambda item, title: (item, title)
    encoding: str = "utf-8"

    @property
    def first(self) -> int:
        """Number of the first row of data."""
        return 2 if self.ratings_header else 1

    def write(self, folder: Path, rows: list[Row] = RATINGS, titles: dict[str, str] = TITLES) -> Path:
        """Both files; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        table = [(u, i, f"{r:g}", *([str(t)] if self.timed else [])) for u, i, r, t in rows]
        catalogue = [self.title_row(item, title) for item, title in titles.items()]
        self.put(folder / self.ratings, self.separator, self.ratings_header, table)
        self.put(folder / self.titles, self.title_separator, self.title_header, catalogue)
        return folder

    def put(self, path: Path, separator: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """One file."""
        lines = [separator.join(row) for row in ([header] if header else []) + rows]
        path.write_bytes("".join(line + "\n" for line in lines).encode(self.encoding))

    def edit(self, folder: Path, which: str, row: int, change: Callable[[list[str]], list[str]]) -> None:
        """Change the fields of a data row (0-based) of ``ratings`` or ``titles``."""
        name, separator = (
            (self.ratings, self.separator) if which == "ratings" else (self.titles, self.title_separator)
        )
        path = folder / name
        lines = path.read_bytes().decode(self.encoding).split("\n")
        at = row + self.first - 1
        lines[at] = separator.join(change(lines[at].split(separator)))
        path.write_bytes("\n".join(lines).encode(self.encoding))


def _flags(item: str, title: str) -> tuple[str, ...]:
    return (item, title, "01-Jan-1995", "", "http://x", *"0100000000000000000")


def _dated(item: str, title: str) -> tuple[str, ...]:
    if title.endswith(")") and "(" in title:
        return item, title[: title.rindex("(")].strip(), title[-5:-1], "Drama"
    return item, title, "", "Drama"


LAYOUTS: dict[str, Layout] = {
    "movielens-100k": Layout("u.data", "u.item", "\t", "|", title_row=_flags, encoding="latin-1"),
    "movielens-dat": Layout(
        "ratings.dat",
        "movies.dat",
        "::",
        "::",
        title_row=lambda item, title: (item, title, "Drama|War"),
        encoding="latin-1",
    ),
    "movielens-csv": Layout(
        "ratings.csv",
        "movies.csv",
        ",",
        ",",
        ("userId", "movieId", "rating", "timestamp"),
        ("movieId", "title", "genres"),
        title_row=lambda item, title: (item, f'"{title}"', "Drama|War"),
    ),
    "goodbooks": Layout(
        "ratings.csv",
        "books.csv",
        ",",
        ",",
        ("user_id", "book_id", "rating"),
        ("book_id", "title"),
        timed=False,
        title_row=lambda item, title: (item, f'"{title}"'),
    ),
    "recbole": Layout(
        "small.inter",
        "small.item",
        "\t",
        "\t",
        ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
        ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"),
        title_row=_dated,
    ),
    "plain": Layout(
        "interactions.csv",
        "titles.csv",
        ",",
        ",",
        ("user", "item", "rating", "time"),
        ("item", "title"),
        title_row=lambda item, title: (item, f'"{title}"'),
    ),
}


def write_parquet(folder: Path, rows: list[Row] = RATINGS, titles: dict[str, str] = TITLES) -> Path:
    """The plain format as parquet; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    users, items, ratings, times = zip(*rows, strict=True)
    table = pa.table({"user": users, "item": items, "rating": ratings, "time": times})
    pq.write_table(table, folder / "interactions.parquet")
    catalogue = pa.table({"item": list(titles), "title": list(titles.values())})
    pq.write_table(catalogue, folder / "titles.parquet")
    return folder


def fails(path, **options) -> str:
    """The message that reading a path ends with, which holds no user data."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert not [word for word in WORDS if word in text], "user data in a message"
    assert "\n" not in text and caught.value.mend
    return text
