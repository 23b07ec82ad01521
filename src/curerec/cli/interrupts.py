"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the program happens to be. Inside a library's C code that tests for
an attribute and clears whatever error comes back, it vanishes and the command runs on. The handler here also
remembers that it was called; each report of progress asks.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_asked = threading.Event()


def watch() -> None:
    """Remember Ctrl-C from now on; only where Python's own handler is in place."""
    _asked.clear()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _remember)


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
