"""Append-only files of JSON lines: what was written whole survives a kill, a torn last line goes."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from curerec.data.durable import storing
from curerec.errors import DataError
from curerec.reports.schema import plain


def read_lines(path: Path, keys: Collection[str] = ()) -> list[dict[str, Any]]:
    """The objects of a file; none if it is not there. A last line without its end is left out.

    Args:
        path: of the file.
        keys: that each must have.

    Raises:
        DataError: a line before the last is no such JSON object: the file was not written by this.
    """
    if not path.exists():
        return []
    *whole, _torn = path.read_bytes().split(b"\n")  # the last piece is empty, or what a kill left
    out = []
    for number, line in enumerate(whole, start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        mend, where = "Take the line out, or start in another --out folder", f"{path.name}, line {number}"
        if not isinstance(value, dict):
            raise DataError("is no JSON object", where=where, mend=mend)
        if lacking := [key for key in keys if key not in value]:
            raise DataError(f"has no {', '.join(lacking)}", where=where, mend=mend)
        out.append(value)
    return out


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add an object and have it on disk before going on; what a kill left of an earlier try is cut off.

    Raises:
        StorageError: the disk is full or cannot be written.
    """
    line = json.dumps(plain(row), sort_keys=True, allow_nan=False).encode() + b"\n"
    with storing(path.name):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end = _whole(handle)
            os.ftruncate(handle, end)
            os.lseek(handle, end, os.SEEK_SET)
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)


def _whole(handle: int, step: int = 1 << 16) -> int:
    """Bytes up to the end of the last whole line."""
    end = os.lseek(handle, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - step)
        os.lseek(handle, start, os.SEEK_SET)
        at = os.read(handle, end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
