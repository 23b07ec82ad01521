"""What a reader is: three functions, one file a format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from curerec.data.columns import Origin


@dataclass(frozen=True)
class Columns:
    """The columns of a ratings file, unchecked: :func:`curerec.data.table.interactions` checks them."""

    users: pa.ChunkedArray
    items: pa.ChunkedArray
    ratings: pa.ChunkedArray
    times: pa.ChunkedArray | None
    origin: Origin


@dataclass(frozen=True)
class Titles:
    """A table with columns ``item`` and ``title``, and the file it is from."""

    table: pa.Table
    origin: Origin


@dataclass(frozen=True)
class Reader:
    """One file format.

    Attributes:
        about: one line for help texts.
        find: the ratings file and, if there, the titles file that a folder or file of this format means;
            None if the path does not look like this format.
        ratings: reads a ratings file.
        titles: reads a titles file.
    """

    about: str
    find: Callable[[Path], tuple[Path, Path | None] | None]
    ratings: Callable[[Path], Columns]
    titles: Callable[[Path], Titles]


def pair(path: Path, ratings: str, titles: str) -> tuple[Path, Path | None] | None:
    """The two files of a format with fixed names, from their folder or from the ratings file itself."""
    file = path / ratings if path.is_dir() else path
    if file.name != ratings or not file.is_file():
        return None
    beside = file.with_name(titles)
    return file, beside if beside.is_file() else None
