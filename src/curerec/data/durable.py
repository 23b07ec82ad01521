"""Writing that a kill or a full disk cannot leave half-done: files, folders and pointers, whole or absent.

Every step goes through ``os`` here, in this order: write beside the target, fsync the file, rename, fsync the
folder. So a fault can be injected at each, and after a power cut a name never points at missing bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from curerec.data.output import WRITING
from curerec.errors import StorageError

T = TypeVar("T")
#: Beginning of names that are not yet, or no longer, what they will be; swept by :func:`sweep`.
TEMPORARY = ".tmp-"


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn what a disk has against being written to into an error of ours.

    Raises:
        StorageError: naming ``what``, never a path of the machine.
    """
    try:
        yield
    except OSError as error:
        reason = WRITING.get(error.errno or 0, f"cannot be written ({type(error).__name__})")
        mend = "Nothing was left half-written. Make room or mend the disk, then run the same command again"
        if error.errno in (errno.ENOENT, errno.EISDIR):
            mend = "Nothing was written. Name another place, or make the folder"
        raise StorageError(reason, where=what, mend=mend) from None


def retried(call: Callable[..., T], *arguments: Any) -> T:
    """Call again where a signal came in between (Python itself does so for most calls, not for all)."""
    for _ in range(100):
        try:
            return call(*arguments)
        except InterruptedError:
            continue
    return call(*arguments)


def sync(path: Path) -> None:
    """Have a file or folder on disk before going on."""
    handle = retried(os.open, path, os.O_RDONLY)
    try:
        retried(os.fsync, handle)
    finally:
        os.close(handle)


def write(path: Path, content: bytes, *, mode: int = 0o600) -> Path:
    """Put ``content`` at ``path`` in one step; a reader sees all of it or what was there before.

    Raises:
        StorageError: full disk, no permission, ...; the old file is still there.
    """
    part = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    with storing(path.name):
        try:
            handle = retried(os.open, part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[retried(os.write, handle, rest) :]
                retried(os.fsync, handle)
            finally:
                os.close(handle)
            retried(os.replace, part, path)
            sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
    return path


def sync_tree(folder: Path) -> None:
    """fsync every file and folder under ``folder``, the folder last."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def publish(stage: Path, target: Path) -> Path:
    """Rename a finished folder into its place; one that is there already is kept.

    Raises:
        StorageError: the rename or an fsync failed; the target is whole or absent.
    """
    with storing(target.name):
        sync_tree(stage)
        if not target.exists():
            retried(os.rename, stage, target)
        sync(target.parent)
    return target


def point(link: Path, target: str) -> None:
    """Make the symbolic link ``link`` point at ``target`` in one step.

    Raises:
        StorageError: the old pointer stays.
    """
    part = link.with_name(f"{TEMPORARY}{link.name}-{secrets.token_hex(4)}")
    with storing(link.name):
        try:
            if link.is_symlink() and os.readlink(link) == target:
                sync(link.parent)
                return
            retried(os.symlink, target, part)
            retried(os.replace, part, link)
            sync(link.parent)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


def move(path: Path, target: Path) -> None:
    """Rename, then fsync both folders; done already is done."""
    with storing(path.name):
        if path.exists():
            retried(os.rename, path, target)
        for folder in dict.fromkeys((target.parent, path.parent)):
            if folder.exists():
                sync(folder)


def destroy(path: Path) -> None:
    """Remove a file or folder: first out of sight in one rename, then its bytes; done already is done.

    The name out of sight follows from ``path``: where a kill came between rename and removal, the repetition
    finds what is left.

    The bytes are unlinked, not overwritten: what a disk's controller or a file system's snapshots keep is
    beyond this program.

    Raises:
        StorageError: it could not be removed.
    """
    with storing(path.name):
        gone = path.with_name(f"{TEMPORARY}gone-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}")
        if gone.exists() or gone.is_symlink():
            _remove(gone)
            sync(path.parent)
        if not path.exists() and not path.is_symlink():
            return
        retried(os.rename, path, gone)
        sync(path.parent)
        _remove(gone)
        sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove what a killed process left under temporary names in ``folder``; nobody else may be at work."""
    with storing(folder.name):
        for path in folder.glob(f"{TEMPORARY}*"):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
