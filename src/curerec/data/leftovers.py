"""What a killed process leaves beside an output folder, and telling it from what a live one is writing.

A folder under preparation is locked (``flock`` on the folder itself) for as long as its process lives: the
kernel drops the lock when the process dies, however it dies, and no process id can be mistaken for another's.
The name holds the machine, since a lock need not be seen from another one that mounts the same disk.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and nothing is swept
    fcntl = None  # type: ignore[assignment]

OLD = "-old"  # of an earlier output that was moved aside for the new one


def hidden_name(folder: Path) -> Path:
    """A new hidden path beside ``folder`` to prepare its contents at."""
    return folder.with_name(f"{_stem(folder)}{secrets.token_hex(4)}")


def hold(path: Path) -> int | None:
    """Lock a folder until the descriptor is closed or this process dies.

    Args:
        path: a folder, not a link to one.

    Returns:
        The descriptor; None where another process holds the folder, or it is not there any more.

    Raises:
        OSError: folders cannot be locked here (Windows, some network disks).
    """
    if fcntl is None:
        raise OSError("no locks on this system")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here, there = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
        if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def make_held(folder: Path, stage: Path) -> tuple[Path, int | None]:
    """Make a hidden folder and lock it.

    Args:
        folder: the output.
        stage: of :func:`hidden_name`; another is taken if a sweep comes between making and locking.

    Returns:
        The folder made and its lock, None where there are no locks.
    """
    while True:
        stage.mkdir()
        try:
            lock = hold(stage)
        except OSError:
            return stage, None
        if lock is not None:
            return stage, lock
        stage = hidden_name(folder)


def sweep(folder: Path) -> None:
    """Clear what dead processes left beside an output folder.

    An earlier output that a killed exchange moved aside is put back where nothing took its place; anything
    else is removed. What a live process holds, or another machine made, stays.
    """
    form = re.compile(re.escape(_stem(folder)) + r"[0-9a-f]{8}(" + OLD + ")?")
    for path in sorted(folder.parent.glob(glob.escape(_stem(folder)) + "*")):
        if not form.fullmatch(path.name):
            continue
        try:
            lock = hold(path)
        except OSError:
            continue
        if lock is None:
            continue
        try:
            if path.name.endswith(OLD) and not os.path.lexists(folder):
                os.rename(path, folder)
            else:
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _stem(folder: Path) -> str:
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
    return f".{folder.name}-curerec-{machine}-"
