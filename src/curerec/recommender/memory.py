"""Memory: what a pass frees and the next one asks for again, and how it is told that there is none left."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

KEPT_BYTES = 1 << 30  # of freed memory that stays with the process
OLD_MOST = 32 << 20  # bytes; glibc refuses a higher threshold for mmap where its heaps have 64 MiB
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
#: What torch says where the C library has no memory to give: a CPU's allocator raises a plain RuntimeError.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU.

    >>> ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."))
    True
    """
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in said for sign in _NO_MEMORY)
    )


@contextmanager
def as_far_as_it_fits() -> Iterator[None]:
    """What is done inside ends where memory runs out, without an error."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise


@functools.cache
def keep_freed(limit: int = KEPT_BYTES) -> bool:
    """Have the C library keep what the process frees, up to ``limit`` bytes, instead of giving it back.

    Activations are freed in every backward pass and allocated in the next forward pass. By default glibc
    hands such blocks back to the kernel, which zeroes every page anew: a third of a training step of the
    small model and half of a scoring pass on a CPU went into that (benchmarks/speed).

    Args:
        limit: bytes; below 2^31.

    Returns:
        Whether it is done: only where the C library is glibc. Of an older one that refuses the limit, for
        blocks of up to 32 MiB.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  another C library counts its options otherwise
        set_option = library.mallopt
    except (OSError, AttributeError):
        return False
    kept = set_option(_TRIM_THRESHOLD, limit) == 1
    return any(set_option(_MMAP_THRESHOLD, most) == 1 for most in (limit, min(limit, OLD_MOST))) and kept
