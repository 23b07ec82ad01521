"""Worker processes: each does one job at a time and tells how far it is. One that dies is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

from curerec.bench.failures import told
from curerec.bench.plan import FAR, Job, Place, nearness
from curerec.bench.recipe import BenchRecipe
from curerec.progress import Advance
from curerec.reports.schema import plain

What = Literal["stage", "row", "done", "failed", "died"]


@dataclass(frozen=True)
class Event:
    """Something a worker tells.

    Attributes:
        what: ``stage`` (name), ``row`` (file and object), ``done``, ``failed``, ``died`` (one line).
        job: that it is of.
        value: as above.
    """

    what: What
    job: Job
    value: Any = None


@dataclass(frozen=True)
class Orders:
    """What a worker is told at its start; see :class:`curerec.bench.work.Workshop`."""

    recipe: BenchRecipe
    out: Path
    places: Mapping[str, str]
    shared: bool
    threads: int | None = None
    cache: Path | None = None
    jobs: int = 1


class Crew(Protocol):
    """Who does the jobs."""

    def idle(self) -> bool:
        """Whether a job can be started."""
        ...

    def busy(self) -> bool:
        """Whether a job is being done."""
        ...

    def opened(self) -> tuple[list[Place], list[Place]]:
        """What those that are free have opened last, and those that are not."""
        ...

    def start(self, job: Job, settings: Mapping[str, Any]) -> None:
        """Have a job done."""
        ...

    def poll(self, timeout_s: float) -> list[Event]:
        """What was told since; waits at most so long for something."""
        ...

    def close(self) -> None:
        """Stop whatever is being done."""
        ...


class Alone:
    """The crew of one that is this process: for Python and tests. A kill for memory ends it."""

    def __init__(self, orders: Orders) -> None:
        from curerec.bench.work import Workshop

        self.shop = Workshop(orders.recipe, orders.out, orders.places, orders.shared, orders.cache)
        self.told: list[Event] = []
        self.last: Place | None = None

    def idle(self) -> bool:
        """Always: a job is done when :meth:`start` returns."""
        return not self.told

    def busy(self) -> bool:
        """Whether something is yet to be told."""
        return bool(self.told)

    def opened(self) -> tuple[list[Place], list[Place]]:
        """The place of the last job, and nothing."""
        return [self.last] if self.last else [], []

    def start(self, job: Job, settings: Mapping[str, Any]) -> None:
        """Do it."""
        self.last = job.place
        self.shop.reporter = _Told(lambda name: self.told.append(Event("stage", job, name)))
        try:
            done = self.shop.do(job, settings)
        except Exception as error:
            self.told.append(Event("failed", job, told(error)))
            return
        self.told += [Event("row", job, pair) for pair in done]
        self.told.append(Event("done", job))

    def poll(self, timeout_s: float) -> list[Event]:
        """What was told since."""
        out, self.told = self.told, []
        return out

    def close(self) -> None:
        """Nothing to stop."""


class Processes:
    """Some processes, each with its own models.

    Args:
        orders: for each.
        number: of processes.
    """

    def __init__(self, orders: Orders, number: int) -> None:
        self.orders, self.number = orders, number
        self.hands: list[_Hand] = []

    def idle(self) -> bool:
        """Whether a process is free, or fewer than ``number`` run."""
        return len(self.hands) < self.number or any(h.job is None for h in self.hands)

    def busy(self) -> bool:
        """Whether a job is being done."""
        return any(h.job is not None for h in self.hands)

    def opened(self) -> tuple[list[Place], list[Place]]:
        """What those that are free have opened last, and those that are not."""
        held = [(h.job is None, h.last) for h in self.hands if h.last is not None]
        return [place for free, place in held if free], [place for free, place in held if not free]

    def start(self, job: Job, settings: Mapping[str, Any]) -> None:
        """Give a job to a free process; to the one that has most of what it needs open."""
        free = sorted((h for h in self.hands if h.job is None), key=lambda h: nearness(job.place, [h.last]))
        known = [h for h in free if nearness(job.place, [h.last]) < FAR]
        if not known and len(self.hands) < self.number:
            seat = min(set(range(self.number)) - {h.seat for h in self.hands})
            free = [_Hand(self.orders, seat)]
            self.hands += free
        hand = (known or free)[0]
        if not hand.process.is_alive():  # it died while it was idle, which is no fault of this job
            hand.stop()
            self.hands.remove(hand)
            hand = _Hand(self.orders, hand.seat)
            self.hands.append(hand)
        hand.give(job, settings)

    def poll(self, timeout_s: float) -> list[Event]:
        """What was told since; waits at most so long for something."""
        out: list[Event] = []
        for pipe in wait([h.pipe for h in self.hands if h.job is not None], timeout_s):
            hand = next(h for h in self.hands if h.pipe is pipe)
            event = hand.listen()
            if event.what == "died" or hand.leaving:
                hand.stop()
                self.hands.remove(hand)
            out.append(event)
        return out

    def close(self) -> None:
        """Stop whatever is being done: artefacts and rows are whole or absent at any time."""
        for hand in self.hands:
            hand.stop()
        self.hands.clear()


class _Hand:
    """One process, as its employer sees it."""

    def __init__(self, orders: Orders, seat: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks and the GPU's state
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, orders, seat), daemon=True)
        self.process.start()
        theirs.close()
        self.seat = seat
        self.job: Job | None = None
        self.last: Place | None = None
        self.leaving = False  # it takes no more jobs; another process has its seat

    def give(self, job: Job, settings: Mapping[str, Any]) -> None:
        self.job, self.last = job, job.place
        with contextlib.suppress(OSError):  # it died just now; listening says so
            self.pipe.send((job, dict(settings)))

    def listen(self) -> Event:
        assert self.job is not None
        job = self.job
        try:
            what, value, self.leaving = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(10)
            code = self.process.exitcode or 0
            name = f"by signal {-code}" if code < 0 else f"with code {code}"
            if code == -signal.SIGKILL:
                name += ", as the system does where memory runs out"
            return Event("died", job, f"its process ended {name}")
        if what in ("done", "failed"):
            self.job = None
        return Event(what, job, value)

    def stop(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.pipe.close()


class _Told:
    """A reporter that tells the employer which stage was begun."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def stage(self, name: str) -> Advance:
        self.tell(name)
        return lambda done, total: None


def serve(pipe: Connection, orders: Orders, seat: int = 0) -> None:
    """Do jobs until there are no more, or whoever gives them is gone.

    Args:
        pipe: jobs come from, and what becomes of them goes to.
        orders: what all processes are told.
        seat: which of them this is; they take the GPUs in turn.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the employer stops us
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
    import torch
    from transformers.utils import logging

    from curerec.bench.work import Workshop
    from curerec.recommender.fitting import share_memory

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if orders.threads:
        torch.set_num_threads(orders.threads)
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(seat % torch.cuda.device_count())
    share_memory(-(-orders.jobs // max(1, torch.cuda.device_count())))
    reporter = _Told(lambda name: pipe.send(("stage", name, False)))
    shop = Workshop(orders.recipe, orders.out, orders.places, orders.shared, orders.cache, reporter=reporter)
    while True:
        try:
            job, settings = pipe.recv()
        except EOFError:
            return
        what: What = "done"
        value = None
        try:
            for file, row in shop.do(job, settings):
                pipe.send(("row", (file, plain(row)), False))
        except Exception as error:
            what, value = "failed", told(error)
        # Found out before it is told: a job given meanwhile would be lost with this process.
        leaving = gpu_is_lost()
        pipe.send((what, value, leaving))
        if leaving:
            return


def gpu_is_lost() -> bool:
    """Whether the GPU takes no more work of this process, as after a failed assertion in a kernel.

    Every later job would fail by that and be written down as its own method's failure.
    """
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _end_with(parent: Any) -> None:
    """End this process the moment its parent has ended, however that ended."""
    if parent is not None:
        parent.join()
        os._exit(1)
