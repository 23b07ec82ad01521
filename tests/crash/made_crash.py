"""Runs of a request that are killed, or whose system calls fail, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from curerec.errors import ModelError
from curerec.recommender import manifest
from curerec.requests import maintain
from curerec.requests.audit import audit
from curerec.requests.lock import runner
from curerec.requests.runner import run
from curerec.requests.store import Store

sys.path.append(str(Path(__file__).resolve().parents[1] / "requests"))
import made_store

#: Every call by which the package changes a disk.
CALLS = ("open", "write", "fsync", "rename", "replace", "symlink", "unlink", "mkdir", "rmdir")


class Count:
    """Counts the calls that change a disk, and does something at one of them."""

    def __init__(self, at: int | None = None, act: Callable[[str], None] | None = None) -> None:
        self.at, self.act, self.seen = at, act, 0

    def __enter__(self) -> Count:
        self.patches = [mock.patch.object(os, name, self._wrapped(name)) for name in CALLS]
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        for patch in self.patches:
            patch.stop()

    def _wrapped(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **options)
            self.seen += 1
            if self.seen == self.at and self.act is not None:
                self.act(name)
            return real(*arguments, **options)

        return call


def template(folder: Path, **policy: Any) -> Path:
    """A store with a request of three users, another of one item, and something outside to destroy."""
    root = made_store.made_store(folder / "template", **policy)
    outside(root)
    with Store(root) as store:
        maintain.register(store, outside(root), kind="checkpoint", policy="destroy")
        store.ledger.add(made_store.users(1, 2, 3))
        store.ledger.add(made_store.Asked("items", (("itm5",),)))
    return root


def outside(root: Path) -> Path:
    """A folder beside a store that holds what was learnt."""
    folder = root.with_name(f"{root.name}-outside") / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(3):
        (folder / f"weights{k}").write_bytes(b"learnt " * 10)
    return folder


def copy(root: Path, target: Path) -> Path:
    """A store like it, at rest, with something outside of its own."""
    for folder in (target, target.with_name(f"{target.name}-outside")):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root, target, symlinks=True)
    with contextlib.closing(sqlite3.connect(target / "ledger.sqlite")) as db:
        db.execute("UPDATE artefact SET path = ?", (str(outside(target)),))
        db.commit()
    return target


def finished(root: Path) -> bytes:
    """Run to the end; the bytes that are served then."""
    with Store(root) as store:
        run(store, made_store.stand())
        counts = store.ledger.counts()
        assert counts["committed"] == 2 and sum(counts.values()) == 2, counts
        assert len([x for x in store.links() if x.action == "deletion"]) == 2
    found = audit(root)
    assert not found.faults, found.faults
    assert not list(root.with_name(f"{root.name}-outside").iterdir())
    assert not [path for path in root.rglob(".tmp-*")]
    return made_store.adapter_bytes(root)


def whole(root: Path) -> None:
    """Right after the kill: no request is lost, and nothing that a loader accepts is partial."""
    with Store(root) as store:
        counts = store.ledger.counts()
        assert sum(counts.values()) == 2 and not counts["cancelled"] and not counts["held"], counts
    current = (root / "current").resolve()
    manifest.check(current, name=current.name)
    for folder in (root / "versions").iterdir():
        if folder.name.startswith("."):
            continue
        if (folder / f"{manifest.MANIFEST}.quarantined").exists():  # on its way aside: no loader takes it
            assert folder != current
            with pytest.raises(ModelError):
                manifest.check(folder)
        else:
            manifest.check(folder, name=folder.name)
    with runner(root):
        pass  # the dead runner's lock is gone


def forked(work: Callable[[], None]) -> int:
    """Do something in a fork; its process id."""
    # A signal before the `try` below would run on in the fork as if it were the test.
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return pid
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        work()
        code = 0
    finally:
        os._exit(code)


def run_once(root: Path) -> None:
    """One run with stand-in stages, as a process of its own would do it."""
    with Store(root) as store:
        run(store, made_store.stand())


def killed_after(root: Path, delay_s: float, how: signal.Signals = signal.SIGKILL) -> bool:
    """Kill a run after so many seconds; whether it was still at work."""

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run_once(root)

    pid = forked(work)
    time.sleep(delay_s)
    os.kill(pid, how)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def killed_at(root: Path, call: int) -> bool:
    """Kill a run at the n-th call that changes the disk; whether it came so far."""

    def work() -> None:
        with Count(call, lambda name: os.kill(os.getpid(), signal.SIGKILL)):
            run_once(root)

    return os.WIFSIGNALED(os.waitpid(forked(work), 0)[1])


def killed_at_statement(root: Path, nth: int) -> bool:
    """Kill a run at the n-th statement of the ledger; whether it came so far."""

    def work() -> None:
        with Store(root) as store:
            seen = 0

            def trace(statement: str) -> None:
                nonlocal seen
                seen += 1
                if seen == nth:
                    os.kill(os.getpid(), signal.SIGKILL)

            store.db.set_trace_callback(trace)
            run(store, made_store.stand())

    return os.WIFSIGNALED(os.waitpid(forked(work), 0)[1])


def failing(number: int) -> Callable[[str], None]:
    """Have a call fail with this errno."""

    def act(name: str) -> None:
        raise OSError(number, os.strerror(number))

    return act


FAULTS = (errno.ENOSPC, errno.EIO, errno.EINTR)
