"""Telling the caller how far a stage is; the command draws bars from it, a library user may ignore it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

Advance = Callable[[int, int], None]


class Reporter(Protocol):
    """Where stages report to."""

    def stage(self, name: str) -> Advance:
        """Begin a stage; the returned callable takes (done, total)."""
        ...


class Silent:
    """Reports to nobody."""

    def stage(self, name: str) -> Advance:
        """A callable that ignores what it is told."""
        return lambda done, total: None


class Clock:
    """Seconds by stage, and the reporter that the stages tell."""

    def __init__(self, reporter: Reporter | None = None) -> None:
        self.reporter = reporter or Silent()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, told: bool = True) -> Iterator[Advance]:
        """Time what happens inside and report its progress; a stage entered twice adds up.

        Args:
            name: of the stage.
            told: False for the sequel of a stage that was reported already: only its seconds count.
        """
        advance = (self.reporter if told else Silent()).stage(name)
        start = time.perf_counter()
        try:
            yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        advance(1, 1)

    @property
    def total_s(self) -> float:
        """Sum over stages, seconds."""
        return sum(self.seconds.values())
