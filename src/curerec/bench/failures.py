"""What a failed cell says: enough to mend it, and nothing of anybody's data."""

from __future__ import annotations

import traceback
from pathlib import Path

import curerec
from curerec.errors import CurerecError

MEMORY = "out of memory"
_SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


def told(error: BaseException) -> str:
    """One line on an error: ours in full, out of memory by name, any other by its type and place alone.

    The message of a foreign error may quote what it stumbled over, and that may be of a user.

    Example:
        >>> told(MemoryError()), told(KeyError("user 42"))
        ('out of memory', 'KeyError')
    """
    if isinstance(error, CurerecError):
        return " ".join(str(error).split())
    text = str(error).lower()
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)
    ):
        return MEMORY
    root = Path(curerec.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(root):
            return f"{type(error).__name__} at {path.relative_to(root)}:{frame.lineno}"
    return type(error).__name__
