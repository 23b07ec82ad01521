"""The user's cache: folders that are whole or not there.

Everything is written into a temporary folder inside the cache, hashed, synced and renamed into place; a
folder counts only if its manifest names every file with a matching sha256. So a killed fetch leaves at most
a temporary folder, which is never read and goes with a later fetch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curerec.errors import StorageError

MANIFEST = "curerec-fetch.json"
TEMPORARY = ".fetch-"
#: Age at which a temporary folder belongs to no running fetch any more.
STALE_S = 24 * 3600
FULL = {errno.ENOSPC, errno.EDQUOT}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
TAKEN = {errno.EEXIST, errno.ENOTDIR}


def root(cache: str | Path | None = None) -> Path:
    """Folder of the cache: the argument, else ``$CUREREC_CACHE``, else the platform's place for caches."""
    if cache is not None:
        return Path(cache)
    if os.environ.get("CUREREC_CACHE"):
        return Path(os.environ["CUREREC_CACHE"]).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "curerec"


def retain_side_at(weights: str, cache: str | Path | None = None) -> Path:
    """Folder of what training and requests leave for the next: circuit and contributions on D_c.

    It holds influence of the recommender's users: who destroys the recommender has it to destroy as well.

    Args:
        weights: ``weights_sha256`` of the recommender's card.
        cache: as for :func:`root`.
    """
    return root(cache) / "retain" / weights


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole folder; None if it is not there or a file is missing or differs."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = found["files"]
        whole = bool(files) and all(sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if whole else None


@contextmanager
def staging(cache: Path, name: str) -> Iterator[Path]:
    """A temporary folder in the cache, removed at the end whatever happens.

    Raises:
        StorageError: the disk is full, or the cache cannot be written or is no folder.
    """
    stage = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        stage = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{name}-", dir=cache))
        yield stage
    except OSError as error:
        if error.errno in FULL:
            mend = "Make room, or point CUREREC_CACHE to a disk that has some; nothing was left half-written."
            raise StorageError("disk is full", where=f"cache of {name}", mend=mend) from None
        if error.errno in DENIED:
            mend = "Point CUREREC_CACHE to a folder you may write."
            raise StorageError("cache cannot be written", where=f"cache of {name}", mend=mend) from None
        if stage is None and error.errno in TAKEN:  # a file, or a link to what is gone
            mend = "Point CUREREC_CACHE to a folder, or remove what is in its place."
            raise StorageError("cache is no folder", where=f"cache of {name}", mend=mend) from None
        raise
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def publish(stage: Path, target: Path, about: dict[str, Any]) -> Path:
    """Make the contents of a staging folder the folder ``target``, in one rename.

    A whole folder that is there by then stays: another process was first, and somebody may be reading it.

    Args:
        stage: from :func:`staging`; holds exactly the files to keep.
        target: its place in the cache.
        about: what the manifest says beside ``files``: source, licence, ...
    """
    whole = stage / "whole"
    names = sorted(path.name for path in stage.iterdir())
    whole.mkdir()
    for name in names:
        os.rename(stage / name, whole / name)
    files = {
        path.relative_to(whole).as_posix(): sha256(path)
        for path in sorted(whole.rglob("*"))
        if path.is_file()
    }
    text = json.dumps(about | {"files": files}, indent=2, ensure_ascii=False) + "\n"
    (whole / MANIFEST).write_text(text, encoding="utf-8")
    for path in [*whole.rglob("*"), whole]:
        sync(path)
    try:
        if manifest(target) is None:
            _replace(whole, target, stage / "old")
    except OSError:
        if manifest(target) is None:  # not another process that was first in between
            raise
    sync(target.parent)
    return target


def _replace(whole: Path, target: Path, aside: Path) -> None:
    if target.exists():  # not whole
        os.rename(target, aside)
    os.rename(whole, target)


def sync(path: Path) -> None:
    """Have a file or folder on disk before going on."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(cache: Path) -> None:
    for path in cache.glob(f"{TEMPORARY}*"):
        try:
            stale = time.time() - path.stat().st_mtime > STALE_S
        except OSError:  # its owner has just removed it
            continue
        if stale:
            shutil.rmtree(path, ignore_errors=True)
