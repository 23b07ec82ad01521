"""Progress bars, one a stage; plain lines where the output is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from curerec.cli.interrupts import check
from curerec.progress import Advance, Reporter


@contextmanager
def bars() -> Iterator[Reporter]:
    """A reporter that draws while the context is open."""
    if sys.stderr.isatty():
        with _Bars() as reporter:
            yield reporter
    else:
        yield _Lines()


class _Bars:
    def __enter__(self) -> _Bars:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
        )
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def stage(self, name: str) -> Advance:
        task = self.progress.add_task(name, total=None)

        def advance(done: int, total: int) -> None:
            check()
            self.progress.update(task, completed=done, total=total)

        return advance


class _Lines:
    """One line when a stage is done: a log file wants no redrawn bars."""

    def stage(self, name: str) -> Advance:
        start = time.perf_counter()
        finished = False

        def advance(done: int, total: int) -> None:
            nonlocal finished
            check()
            # Loops end with done == total and the clock tells (1, 1) after them: say it once.
            if done == total == 1 and not finished:
                finished = True
                print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)

        return advance
