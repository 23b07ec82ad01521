"""A benchmark from beginning to end, or from where the last sitting stopped."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curerec.bench import artefacts, rows
from curerec.bench.crew import Alone, Crew, Event, Orders, Processes
from curerec.bench.known import Known
from curerec.bench.lines import append_line, read_lines
from curerec.bench.plan import Job, Place, nearness, plan
from curerec.bench.recipe import BenchRecipe
from curerec.bench.timing import Estimate, duration
from curerec.bench.work import ROWS, Workshop
from curerec.data import durable, leftovers
from curerec.errors import ConfigError, RefusedError, StorageError
from curerec.machine import processors

POLL_S = 0.5
BLOCKING = ("base", "original", "retrain", "yardstick")  # a failure of these is of all that wait for them


@dataclass
class Sitting:
    """What one call did.

    Attributes:
        done: cells and yardsticks with rows, of this call and earlier ones.
        total: of the recipe.
        failed: label and one line of each cell that failed in this call.
        blocked: one line and the number of cells that could not be run for it.
        stopped: why it ended before everything was done; empty where it did not.
    """

    done: int = 0
    total: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    blocked: dict[str, int] = field(default_factory=dict)
    stopped: str = ""


def run(
    recipe: BenchRecipe,
    out: Path,
    *,
    jobs: int = 0,
    threads: int | None = None,
    minutes: float | None = None,
    places: Mapping[str, str] | None = None,
    retry: bool = False,
    cache: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    crew: Callable[[Orders], Crew] | None = None,
    at_end: Callable[[], None] = lambda: None,
) -> Sitting:
    """Do what is not done yet of a recipe, and write rows as they come.

    ``rows.jsonl`` gets a line for every original, retrain and cell, ``trials.jsonl`` one for every setting
    tried, ``obstacles.jsonl`` one for every base, original, retrain or yardstick that could not be made, and
    for every trial or cell that could not be written.
    A run that is killed goes on from there; models and measurements of the yardstick are kept beside
    them and used again if they are of the same configuration and whole.

    Args:
        recipe: what to do.
        out: folder of the run, made if it is not there.
        jobs: worker processes; 0: none, all is done in this process.
        threads: of each worker; None: the processors shared out.
        minutes: begin nothing that will, by estimate, not be done by then.
        places: where data sets are that their names do not find.
        retry: also the cells that failed before.
        cache: of the user.
        tell: takes lines of progress.
        crew: who does it; None: as ``jobs`` says.
        at_end: called before the folder is let go, however the work that was begun ended; not where nothing
            was.

    Raises:
        ConfigError: the recipe cannot be carried out, or ``out`` holds the benchmark of another one.
        StorageError: ``out`` holds something else, or cannot be written.
        RefusedError: another run is at work in ``out``.
    """
    start = time.monotonic()
    new = [path for path in (out, *out.parents) if not path.exists()]  # deepest first
    lock = None
    try:
        _prepare(out)
        lock = _lock(out)
        _check_name(out, recipe)
        if threads is None and jobs:
            threads = max(1, processors() // jobs)
        orders = Orders(recipe, out, dict(places or {}), jobs > 1, threads, cache, max(1, jobs))
        foreman = _Foreman(recipe, out, orders, jobs, retry, tell)
        if lock is not None:  # nobody else is at work
            _sweep(out)
        stands = recipe.as_it_stands().model_dump_json(indent=1) + "\n"
        durable.write(out / "bench.json", stands.encode(), mode=0o644)  # when nothing can be refused any more
        (out / artefacts.OBSTACLES).unlink(missing_ok=True)  # they are tried again
        foreman.deadline = None if minutes is None else start + 60 * minutes
        hands = crew(orders) if crew else Processes(orders, jobs) if jobs else Alone(orders)
        try:
            foreman.work(hands)
        finally:
            hands.close()
            at_end()
        return foreman.sitting
    finally:
        if lock is not None:
            os.close(lock)
        with contextlib.suppress(OSError):  # not empty: something was begun
            for path in new:
                path.rmdir()


class _Foreman:
    """Knows what is done, what can be done now, and how long the rest will take."""

    def __init__(
        self,
        recipe: BenchRecipe,
        out: Path,
        orders: Orders,
        jobs: int,
        retry: bool,
        tell: Callable[[str], None],
    ) -> None:
        self.recipe, self.out, self.tell = recipe, out, tell
        self.width = max(1, jobs)
        self.clerk = Workshop(recipe, out, orders.places, orders.shared)  # writes rows of who died
        self.jobs = {job.key: job for job in plan(recipe)}
        self.known = Known(recipe, self.jobs, out, self.clerk, retry=retry)
        self.written: set[str] = set()  # keys of jobs whose row has come
        self.estimate = Estimate(self.known.cells, self.known.trials)
        self.settled = self.known.settled()
        self.open = self._needed()
        self.broken: dict[str, str] = {}
        self.begun: dict[str, float] = {}
        self.at_work: set[str] = set()  # keys of jobs that told of a stage
        self.deadline: float | None = None
        reported = [j for j in self.jobs.values() if j.kind in ("cell", "yardstick")]
        self.sitting = Sitting(sum(j.key in self.settled for j in reported), len(reported))

    def work(self, crew: Crew) -> None:
        """Until nothing is left that can be done."""
        self.tell(f"{self.sitting.done} of {self.sitting.total} cells are there; {self._left()}")
        while True:
            while crew.idle() and (job := self._next(*crew.opened())) is not None:
                del self.open[job.key]
                if self.known.is_done(job):  # its trials were run again, and chose what its row was made with
                    self._settle(job)
                    continue
                self.begun[job.key] = time.monotonic()
                crew.start(job, self.known.settings(job))
            if not crew.busy():
                break
            for event in crew.poll(POLL_S):
                self._hear(event)
        for job in self.open.values():
            why = self._obstacle(job)
            if why and job.kind == "cell":
                self.sitting.blocked[why] = self.sitting.blocked.get(why, 0) + 1
            elif not why and self.deadline is not None:
                self.sitting.stopped = "the time is up"

    def _next(self, mine: Sequence[Place] = (), theirs: Sequence[Place] = ()) -> Job | None:
        """A job that can be begun: for which all is open, then for which nobody else has, then the first.

        What a request's cells share (data, references and what attacks make of them) takes longer to open
        than a quick method takes, so two workers do not open one request as long as there is another.

        Args:
            mine, theirs: what free workers have opened, and those at work.
        """
        ready = (job for job in self.open.values() if self._can_begin(job))

        def order(job: Job) -> tuple[bool, int, int]:
            near = nearness(job.place, mine)
            return near > 0, -nearness(job.place, theirs), near

        return min(ready, key=order, default=None)

    def _can_begin(self, job: Job) -> bool:
        if not all(need in self.settled for need in job.needs if need in self.jobs):
            return False
        if self._obstacle(job) or self._in_hand(job):
            return False
        return self.deadline is None or time.monotonic() + self.estimate.seconds(job) <= self.deadline

    def _in_hand(self, job: Job) -> bool:
        """Whether the same training is being done for another model entry; it will then be found whole."""
        if not job.trains:
            return False
        running = (self.jobs[k] for k in self.begun if k not in self.settled and k not in self.broken)
        return any(j.kind == job.kind and self._training(j) == self._training(job) for j in running)

    def _training(self, job: Job) -> tuple[Any, ...]:
        """What names the model of such a job; two entries may share a base and be fine-tuned otherwise."""
        setting = self.recipe.setting(job.dataset, job.model, ask=job.ask, seed=job.seed)
        what = {} if job.kind == "base" else artefacts.training_of(setting)
        return job.dataset, job.seed, job.request, job.number, what

    def _obstacle(self, job: Job) -> str:
        """The failure, of something that it waits for, that stands in a job's way."""
        for need in job.needs:
            if need in self.broken:
                return self.broken[need]
            if need in self.open and (why := self._obstacle(self.open[need])):
                return why
        return ""

    def _hear(self, event: Event) -> None:
        job = event.job
        if event.what == "row":
            file, row = event.value
            self._write(file, row, job)
        elif event.what == "stage":
            self.at_work.add(job.key)
            self.tell(f"  {job.label}: {event.value}")
        elif event.what == "done" or (event.what == "died" and job.key in self.written):
            self._settle(job)
        elif event.what == "died" and job.kind in ("cell", "trial"):
            file, row = self.clerk.lost(job, event.value, self.known.settings(job))
            self._write(file, row, job)
            self._settle(job)
        else:
            self.broken[job.key] = why = f"{job.label}: {event.value}"
            if job.kind == "cell":  # it waits for the disk
                self.sitting.blocked[why] = self.sitting.blocked.get(why, 0) + 1
            self.tell(f"failed: {self.broken[job.key]}")
            about = {"dataset": job.dataset, "model": job.model, "seed": job.seed, "request": job.request}
            append_line(self.out / artefacts.OBSTACLES, {**about, "text": self.broken[job.key]})

    def _write(self, file: str, row: Mapping[str, Any], job: Job) -> None:
        append_line(self.out / file, row)
        if job.kind in ("cell", "trial"):
            self.written.add(job.key)
        self.known.add(file, row)
        if file == ROWS and row["failure"]:
            self.sitting.failed.append((job.label, row["failure"]))

    def _settle(self, job: Job) -> None:
        begun = self.begun.get(job.key)
        seconds = 0.0 if begun is None else time.monotonic() - begun
        # A training that told of no stage has found its model there.
        if begun is not None and (job.key in self.at_work or not job.trains):
            self.estimate.learn(job, seconds)
        self.settled.add(job.key)
        if job.kind == "original":
            self.known.look_again()
        self.sitting.done += job.kind in ("cell", "yardstick")
        if job.kind == "yardstick":
            self._reopen(self.known.cells_of(job) & self.settled)
        failed = [why for label, why in self.sitting.failed[-1:] if label == job.label]
        note = f"failed: {failed[0]}; " if failed and job.kind == "cell" else ""
        count = f"[{self.sitting.done}/{self.sitting.total}]"
        self.tell(f"{count} {job.label}: {note}{duration(seconds)}; {self._left()}")

    def _reopen(self, cells: set[str]) -> None:
        """Have cells done again that were measured with other models than their yardstick is of by now."""
        gone = {k for k in cells if not self.known.is_done(self.jobs[k])}
        if gone:
            self.settled -= gone
            self.sitting.done -= len(gone)
            self.open = {k: job for k, job in self._needed().items() if k not in self.begun}

    def _left(self) -> str:
        running = [self.jobs[k] for k in self.begun if k not in self.settled and k not in self.broken]
        total = sum(self.estimate.seconds(job) for job in [*self.open.values(), *running])
        return f"about {duration(total / self.width)} left" if total else "nothing left"

    def _needed(self) -> dict[str, Job]:
        """Jobs that are not done and that something not done waits for, in the plan's order."""
        wanted: set[str] = set()
        stack = [k for k, j in self.jobs.items() if j.kind in ("cell", "yardstick") and k not in self.settled]
        while stack:
            key = stack.pop()
            if key not in wanted and key not in self.settled:
                wanted.add(key)
                stack += self.jobs[key].needs
        return {k: job for k, job in self.jobs.items() if k in wanted}


def _prepare(out: Path) -> None:
    """Make the folder, or see that it is one of ours.

    Raises:
        StorageError: it is a file, holds something else, or cannot be written.
    """
    mend = "Name another --out folder"
    if out.exists() and not out.is_dir():
        raise StorageError("is a file, not a folder", where=str(out), mend=mend)
    with durable.storing(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    if not names <= {*artefacts.NAMES, "README.md"}:
        raise StorageError("holds something that is not of a benchmark", where=str(out), mend=mend)


def _sweep(out: Path) -> None:
    """Remove what no run needs any more: it may hold answers to people's prompts.

    That is what a kill left of files that were being written, and answers that no row names: a kill came
    before their row, or another row has replaced theirs.
    """
    for name in ("", artefacts.YARDSTICKS, artefacts.PREDICTIONS):
        durable.sweep(out / name)
    named = {row.get("predictions") for row in rows.newest(read_lines(out / ROWS, rows.NEEDED))}
    answers = [p for p in (out / artefacts.PREDICTIONS).glob("*.safetensors") if p.name not in named]
    with durable.storing(str(out)):
        for path in (*out.glob(".bench.html.*.part"), *answers):
            path.unlink(missing_ok=True)


def _check_name(out: Path, recipe: BenchRecipe) -> None:
    """See that the folder is of this recipe: its rows would else be those of two benchmarks.

    Raises:
        ConfigError: it is of one of another name.
    """
    try:
        held = json.loads((out / "bench.json").read_bytes())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if held != recipe.name:
        mend = f"Name another --out folder, or give the recipe the name {held}"
        raise ConfigError(f"holds the benchmark {held}, not {recipe.name}", where=str(out), mend=mend)


def _lock(out: Path) -> int | None:
    """Hold the folder for as long as this process lives."""
    try:
        held = leftovers.hold(out)
    except OSError:  # folders cannot be locked here
        return None
    if held is None:
        raise RefusedError(
            "another run is at work in it", where=str(out), mend="Wait for it, or name another --out folder"
        )
    return held
