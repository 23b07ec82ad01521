"""One runner at a time: a lock that the system lets go of when its holder dies, however it dies.

It is on the store's folder itself, not on a file in it: whoever removes a file that looks like a stale lock
would let a second run in beside the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from curerec.data.durable import storing
from curerec.errors import RefusedError

PATIENCE_S = 1.0  # a look by `held` takes the lock for an instant


@contextlib.contextmanager
def runner(folder: Path, *, wait_s: float = PATIENCE_S) -> Iterator[None]:
    """Hold the lock of a store's folder.

    Raises:
        RefusedError: somebody else holds it.
    """
    with storing("lock"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RefusedError(
                        "another run is at work on this store",
                        where="lock",
                        mend="Wait for it; `curerec request status` shows how far it is",
                    ) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)  # and with it the lock


def held(folder: Path) -> bool:
    """Whether a run is at work."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
