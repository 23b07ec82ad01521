"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the program happens to be. Inside a library's C code that tests for
an attribute and clears whatever error comes back, it vanishes and the command runs on. The handler here also
remembers that it was called; each report of progress asks. Where nobody can be told, as in what runs when a
module's lock is let go, Python would print a traceback; what is remembered needs none.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

_asked = threading.Event()


def watch() -> None:
    """Remember Ctrl-C from now on; only where Python's own handler is in place."""
    _asked.clear()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _remember)
        sys.unraisablehook = partial(_told, sys.unraisablehook)


def check() -> None:
    """Raise what was swallowed.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed and the command still runs.
    """
    if _asked.is_set():
        _asked.clear()  # once: cleaning up may report progress too
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt


def _told(before: Callable[[Any], Any], ignored: Any) -> None:
    if not (_asked.is_set() and issubclass(ignored.exc_type, KeyboardInterrupt)):
        before(ignored)
