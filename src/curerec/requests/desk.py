"""The ledger as the service uses it: reads at once, writes by one thread that puts what came in together."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curerec.errors import CurerecError, RefusedError
from curerec.requests.database import transaction
from curerec.requests.ledger import Asked
from curerec.requests.lock import held
from curerec.requests.maintain import cancel
from curerec.requests.store import Store
from curerec.requests.table import Table

TOGETHER = 64  # writes in one transaction at most, so with one wait for the disk
LOOK_S = 5.0  # between looks at whether the table is still the stored one, while nothing comes in
Command = Callable[[Path, dict[str, bool]], list[str]]


def run_command(root: Path, options: dict[str, bool]) -> list[str]:
    """The command that a worker process runs."""
    flags = [f"--{name}" for name, on in sorted(options.items()) if on]
    # -P: else what lies in the folder that the service was started in would be imported first.
    start = [sys.executable, "-P", "-c", "from curerec.cli import main; main()"]
    return [*start, "request", "run", "--store", str(root), *flags]


class Desk:
    """Where requests are handed in.

    Args:
        root: of the store.
        command: what a worker process runs.
    """

    def __init__(self, root: Path, command: Command = run_command) -> None:
        self.root, self.command = root, command
        self.store = Store(root, thread_check=False)
        self.worker: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._todo: queue.SimpleQueue[tuple[Any, asyncio.Future[Any], asyncio.AbstractEventLoop] | None] = (
            queue.SimpleQueue()
        )
        self._table: tuple[str, Table] | None = None
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is waiting, then stop; a worker process goes on."""
        self._todo.put(None)
        self._thread.join()
        self.store.__exit__()

    async def add(self, asked: Asked, places: tuple[str, ...]) -> tuple[str, bool]:
        """Take a request in; it is on disk when this returns.

        Raises:
            RequestError: it names what is not there.
            StorageError: the disk refused.
        """
        return await self._write_soon((asked, places))

    async def cancel(self, request: str) -> None:
        """Take a request back.

        Raises:
            RefusedError: it is too late.
        """
        await self._write_soon(request)

    def start(self, options: dict[str, bool]) -> None:
        """Start a worker process, in a session of its own.

        Raises:
            RefusedError: one is at work.
        """
        if self.busy or held(self.store.lock):
            raise RefusedError("a run is at work already", where="run", mend="Wait for it")
        self.starts += 1
        # Its output could quote a traceback; what became of it is in the ledger.
        self.worker = subprocess.Popen(
            self.command(self.root, options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C ends the service; a run goes on
        )

    @property
    def busy(self) -> bool:
        """Whether the worker that was started last is at work."""
        return self.worker is not None and self.worker.poll() is None

    @property
    def last_exit(self) -> int | None:
        """How the last worker ended: an exit code, less than 0 for a signal; None: none has ended."""
        return None if self.worker is None else self.worker.poll()

    async def _write_soon(self, what: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._todo.put((what, future, loop))
        return await future

    def _write(self) -> None:
        with Store(self.root) as store:
            while True:
                try:
                    first = self._todo.get(timeout=LOOK_S)
                except queue.Empty:
                    with contextlib.suppress(CurerecError):  # a disk that fails: the next look sees
                        self._let_go(store)
                    continue
                if first is None:
                    return
                batch, last = [first], False
                while len(batch) < TOGETHER:
                    try:
                        more = self._todo.get_nowait()
                    except queue.Empty:
                        break
                    if more is None:
                        last = True
                        break
                    batch.append(more)
                self._together(store, batch)
                if last:
                    return

    def _together(self, store: Store, batch: list[Any]) -> None:
        answers: list[Any] = [None] * len(batch)
        adds: dict[int, Asked] = {}
        for k, (what, _, _) in enumerate(batch):
            try:
                if isinstance(what, str):
                    cancel(store, what)
                else:
                    asked, places = what
                    self._current(store).check(asked.kind, list(asked.entries), places, "request")
                    adds[k] = asked
            except Exception as error:
                answers[k] = error
        if adds:
            try:
                with transaction(store.db):
                    for k, asked in adds.items():
                        answers[k] = store.ledger.add_inside(asked)
            except Exception:
                # None of them was taken in; one alone may be to blame, and the others are not to suffer.
                for k, asked in adds.items():
                    try:
                        answers[k] = store.ledger.add(asked)
                    except Exception as error:
                        answers[k] = error
        for (_, future, loop), answer in zip(batch, answers, strict=True):
            loop.call_soon_threadsafe(_resolve, future, answer)

    def _let_go(self, store: Store) -> None:
        """Drop a table that a run has replaced: mapped, it would keep the rows that were deleted."""
        if self._table is not None and self._table[0] != store.ledger.meta("data"):
            self._table = None

    def _current(self, store: Store) -> Table:
        name = store.ledger.meta("data") or ""
        if self._table is None or self._table[0] != name:
            self._table = (name, store.table())
        return self._table[1]


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():  # the client is gone
        return
    if isinstance(answer, CurerecError):
        future.set_exception(answer)
    elif isinstance(answer, Exception):
        # Its own text could quote what was handed in.
        future.set_exception(RuntimeError(type(answer).__name__))
    else:
        future.set_result(answer)
