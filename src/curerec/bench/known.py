"""What earlier sittings left of a benchmark, and what of it still holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from curerec.bench import artefacts, rows
from curerec.bench.lines import read_lines
from curerec.bench.materials import Materials
from curerec.bench.plan import Job, config_hash, is_searched
from curerec.bench.recipe import BenchRecipe
from curerec.bench.search import choice
from curerec.bench.work import ROWS, TRIALS

TRIED = ("dataset", "failure")  # that a trial cannot be without; those of before have no config_hash


class Known:
    """Rows and trials of a folder, and which jobs they settle.

    Args:
        recipe: of the run.
        jobs: of its plan, by key.
        out: folder of the run.
        materials: say what the data are now.
        retry: leave out what failed.

    Attributes:
        rows: by :func:`curerec.bench.rows.row_key`.
        trials: in the order of their file.
        data: digests by data set that the lines name, and by name of :data:`rows.OF_DATA`.
        hash: configuration of each trial and cell, and of the original of each yardstick, by key of the job.
    """

    def __init__(
        self, recipe: BenchRecipe, jobs: Mapping[str, Job], out: Path, materials: Materials, *, retry: bool
    ) -> None:
        self.recipe, self.jobs, self.out = recipe, jobs, out
        self._found: dict[tuple[str, str, int], str | None] = {}  # weights of originals, as last looked at
        self._same = cache(partial(artefacts.same_yardstick, out))
        self.hash = {k: config_hash(recipe, j) for k, j in jobs.items() if j.kind in ("cell", "trial")}
        yards = [j for j in jobs.values() if j.kind == "yardstick"]
        self.hash |= {j.key: config_hash(recipe, j, "original") for j in yards}
        found, tried = rows.newest(read_lines(out / ROWS, rows.NEEDED)), read_lines(out / TRIALS, TRIED)
        named = {row["dataset"] for row in (*found, *tried) if row.get("fingerprint")}
        seen = sorted(named & recipe.datasets.keys())
        # Not of ratings and titles as they are now but of what a name or a file stood for before: done again.
        self.data = {name: rows.of_data(materials.data(name)) for name in seen}  # each is loaded once
        old, self.trials = (
            [r for r in lines if rows.is_of(r, self.data.get(r["dataset"], {}))] for lines in (found, tried)
        )
        if retry:
            self.trials = [trial for trial in self.trials if not trial["failure"]]
        self.rows = {rows.row_key(row): row for row in old if not (retry and row["failure"])}
        self.cells = [row for row in old if row["method"] not in recipe.measured_once]

    def look_again(self) -> None:
        """An original has been trained or found: trials are of it or of another one."""
        self._found.clear()

    def add(self, file: str, row: Mapping[str, Any]) -> None:
        """Take up a line that has just been written."""
        if file == TRIALS:
            self.trials.append(dict(row))
        else:
            self.rows[rows.row_key(row)] = dict(row)

    def settled(self) -> set[str]:
        """Keys of the jobs that need not be done.

        A yardstick whose models are gone is left as it is where all that waits for it is done. Trials of an
        original that is gone are settled where none of them has to be run; else when it is there again, and
        it is seen whether it is the same.
        """
        done = {k for k, job in self.jobs.items() if self.is_done(job)}
        for key in self._to_be_trained(done):
            trials = {k for k, j in self.jobs.items() if j.kind == "trial" and key in j.needs}
            done -= trials | {k for k, j in self.jobs.items() if trials & set(j.needs)}
        for yard in (j for j in self.jobs.values() if j.kind == "yardstick" and j.key not in done):
            if self._is_measured(yard) and self._is_backed(yard) is None and self.cells_of(yard) <= done:
                done.add(yard.key)
        return done

    def cells_of(self, yard: Job) -> set[str]:
        """Keys of the cells that are measured with a yardstick."""
        return {k for k, j in self.jobs.items() if j.kind == "cell" and yard.key in j.needs}

    def is_done(self, job: Job) -> bool:
        """Whether a job's rows are there and hold: of these data, settings and models."""
        if job.kind == "trial":
            return self._trial(job) is not None
        if job.kind == "yardstick":
            return self._is_measured(job) and self._is_backed(job) is True
        return job.kind == "cell" and self._is_measured(job)

    def settings(self, job: Job) -> Mapping[str, Any]:
        """What the search chose for the method of a cell."""
        if self.recipe.search is None or job.kind != "cell" or not is_searched(self.recipe, job.method):
            return {}
        keys = [n for n in job.needs if n.startswith("trial|")]
        mine = [t for k in keys if (t := self._trial(self.jobs[k])) is not None]
        found: Mapping[str, Any] = choice(mine, self.recipe.search.tolerance)["settings"] if mine else {}
        return found

    def _to_be_trained(self, done: set[str]) -> set[str]:
        """Keys of the originals that are gone and that some trial waits for."""
        waiting = {n for k, j in self.jobs.items() if j.kind == "trial" and k not in done for n in j.needs}
        gone = {t["dataset"]: t for t in self.trials if t.get(rows.ORIGINAL)}  # of the last that names one
        return {
            key
            for key in waiting
            if (job := self.jobs[key]).dataset in gone and self._weights(job, gone[job.dataset]) is None
        }

    def _weights(self, job: Job, trial: Mapping[str, Any]) -> str | None:
        """sha256 of the development original's weights as it is now; None where it is gone."""
        key = (job.dataset, job.model, job.seed)
        if key not in self._found:
            recipe = self.recipe.setting(job.dataset, job.model, seed=job.seed)
            about = artefacts.trained_as(trial["fingerprint"], recipe, None, trial["titles"])
            self._found[key] = artefacts.weights_at(self.out, about)
        return self._found[key]

    def _is_of_this_original(self, job: Job, trial: Mapping[str, Any]) -> bool:
        """Whether a trial is of the original that is there; of one that is gone, or not named, it may be."""
        named = trial.get(rows.ORIGINAL)
        return named is None or self._weights(job, trial) in (None, named)

    def _trial(self, job: Job) -> Mapping[str, Any] | None:
        """The last line on a trial of the original that is there."""
        about = (job.dataset, job.model, job.method, job.seed, job.number, self.hash[job.key])
        names = ("dataset", "model", "method", "seed", "number", "config_hash")
        mine = (t for t in reversed(self.trials) if tuple(t.get(n) for n in names) == about)
        return next((t for t in mine if self._is_of_this_original(job, t)), None)

    def _is_measured(self, job: Job) -> bool:
        """Whether the rows of a cell or a yardstick are there, as chosen and all of one set of models."""
        assert job.ask is not None
        names = self.recipe.measured_once if job.kind == "yardstick" else [job.method]
        where = (job.dataset, job.model, job.ask.key, job.seed)
        found = [self.rows.get((*where, n, config_hash(self.recipe, job, n))) for n in names]
        beside = self._original(job).get("yardstick")
        return all(
            row is not None and self._as_chosen(job, row) and rows.is_beside(row, beside, self._same)
            for row in found
        )

    def _as_chosen(self, job: Job, row: Mapping[str, Any]) -> bool:
        """Whether a row was made with the settings that the search chooses, as its trials now stand.

        What a trial depends on (the data set and the request it is tried on) is not in the hash of the
        cells that take its choice, so that is not enough. Failed rows of before do not say what they were
        made with.
        """
        if job.kind != "cell" or not is_searched(self.recipe, job.method) or row.get("settings") is None:
            return True
        tried = all(self._trial(self.jobs[n]) for n in job.needs if n.startswith("trial|"))
        return tried and row["settings"] == self.settings(job)

    def _original(self, job: Job) -> Mapping[str, Any]:
        """The row of the original that a cell or a yardstick stands beside; empty without one."""
        assert job.ask is not None
        key = next((n for n in job.needs if n.startswith("yardstick|")), job.key)
        where = (job.dataset, job.model, job.ask.whole.key, job.seed)
        return self.rows.get((*where, "original", self.hash[key])) or {}

    def _is_backed(self, yard: Job) -> bool | None:
        """Whether a yardstick's rows are of the models that are there now; None where one is gone."""
        row = self._original(yard)
        if not row.get("yardstick") or not row.get("fingerprint"):  # it does not say
            return True
        recipe = self.recipe.setting(yard.dataset, yard.model, ask=yard.ask, seed=yard.seed)
        return artefacts.backing(
            self.out,
            row["yardstick"],
            row["fingerprint"],
            recipe,
            self.recipe.references,
            row.get("titles") or self.data.get(yard.dataset, {}).get("titles"),
        )
