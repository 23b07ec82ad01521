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
        find: the ratings files of this format that a path may mean, in order: itself, or files of the folder;
            none if it does not look like this format.
        beside: the titles file of a ratings file; None if there is none.
        ratings: reads a ratings file.
        titles: reads a titles file.
    """

    about: str
    find: Callable[[Path], list[Path]]
    beside: Callable[[Path], Path | None]
    ratings: Callable[[Path], Columns]
    titles: Callable[[Path], Titles]


def named(path: Path, name: str) -> list[Path]:
    """The ratings file of a format with fixed names, from its folder or from the file itself."""
    file = path / name if path.is_dir() else path
    return [file] if file.name == name and file.is_file() else []


def neighbour(file: Path, name: str) -> Path | None:
    """The file of this name in the same folder, if there."""
    beside = file.with_name(name)
    return beside if beside.is_file() else None
