"""Folders named by what they hold: a manifest with the sha256 of every file, whose own sha256 is the name."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curerec.data.durable import write
from curerec.errors import ModelError

MANIFEST = "manifest.json"
FORMAT = "curerec-manifest/1"
MEND = "Use a version that `curerec verify` passes; it is never loaded as it is"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: str
    files: dict[str, _File] = Field(min_length=1)


def digest_of(path: Path) -> str:
    """sha256 of a regular file; a link is not followed.

    Raises:
        OSError: it is a link or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(handle, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_of(folder: Path, *, where: str) -> dict[str, Any]:
    """What a manifest of this folder must say.

    Raises:
        ModelError: a file is a link or a device.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name, kind = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if name == MANIFEST:
            continue
        if not stat.S_ISREG(kind):
            raise ModelError("holds something that is no plain file", where=where, mend=MEND)
        files[name] = {"sha256": digest_of(path), "bytes": path.stat().st_size}
    return {"format": FORMAT, "files": files}


def seal(folder: Path, *, where: str = "version") -> str:
    """Write the manifest of a finished folder; returns its content hash, 64 hex digits, its name to be."""
    content = rfc8785.dumps(content_of(folder, where=where))
    write(folder / MANIFEST, content, mode=0o644)
    return hashlib.sha256(content).hexdigest()


def check(folder: Path, *, name: str | None = None, where: str = "version") -> str:
    """Refuse a folder whose files are not exactly those of its manifest.

    Args:
        folder: to be checked, every byte.
        name: the content hash it must have; None takes any.
        where: how to call it in the message.

    Returns:
        The content hash.

    Raises:
        ModelError: no manifest, a damaged one, a file more, less or different, or another name.
    """
    try:
        handle = os.open(folder / MANIFEST, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as file:
            raw = file.read(1 << 22)
        said = _Manifest.model_validate(json.loads(raw), strict=True).model_dump()
        canonical = rfc8785.dumps(said) == raw
    except (OSError, ValueError, RecursionError, ValidationError, rfc8785.CanonicalizationError):
        raise ModelError(f"holds no valid {MANIFEST}", where=where, mend=MEND) from None
    if not canonical or said["format"] != FORMAT:
        raise ModelError(f"its {MANIFEST} is not of format {FORMAT}", where=where, mend=MEND)
    try:
        there = content_of(folder, where=where)
    except OSError:
        raise ModelError("a file of it cannot be read", where=where, mend=MEND) from None
    if there != said:
        raise ModelError(f"its files are not those of its {MANIFEST}", where=where, mend=MEND)
    digest = hashlib.sha256(raw).hexdigest()
    if name is not None and digest != name:
        raise ModelError("its content is not what its name says", where=where, mend=MEND)
    return digest
