"""What a worker does for each kind of job; what jobs share is opened in ``materials.py``."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from curerec.bench import artefacts as kept
from curerec.bench import rows, search
from curerec.bench.blind import blind_task
from curerec.bench.failures import told
from curerec.bench.materials import Materials
from curerec.bench.plan import Job, config_hash, tries_of
from curerec.bench.sequence import explained, one_after_the_other
from curerec.config import Strict
from curerec.errors import CurerecError, RefusedError, StorageError
from curerec.evaluation import METRICS
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.cost import Meter, latency_ratio
from curerec.evaluation.guard import nothing_happened
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.metric import Metric, Value, evaluate
from curerec.evaluation.scene import PARTS, Scene, scenes
from curerec.judge import judge
from curerec.machine import timed_on, versions
from curerec.measure import candidate, cells, chosen_metrics
from curerec.pipeline import carry_out, task_for, unlearn
from curerec.progress import Clock
from curerec.records import ForgetSplit, Outcome
from curerec.splitting import drawn_request

Done = list[tuple[str, rows.Row]]  # (file, row)
ROWS, TRIALS = "rows.jsonl", "trials.jsonl"
#: Metrics of every row: those of the answers that a row names.
ANSWERS = [*(rows.metric_of(c) for c in rows.COLUMNS if c not in rows.ATTACKS), *rows.FURTHER]
PREDICTED = ("forget", "control", "test")  # parts whose P(yes) is kept of each cell


class Workshop(Materials):
    """A worker's bench: does one job after the other with the materials that they share."""

    def do(self, job: Job, settings: Mapping[str, Any]) -> Done:
        """Do a job; the rows that it gives.

        Args:
            job: to do.
            settings: that the search chose for the method of a cell.

        Raises:
            StorageError: the disk is full or cannot be written, whatever the job.
            Exception: of a job that others wait for. A trial or a cell that fails is a row.
        """
        if job.kind == "trial":
            return [(TRIALS, self._trial(job))]
        if job.kind == "cell":
            return [(ROWS, self._cell(job, settings))]
        if job.kind == "yardstick":
            return [(ROWS, row) for row in self._yardstick_rows(job)]
        recipe = self.recipe.setting(job.dataset, job.model, ask=job.ask, seed=job.seed)
        data = self.data(job.dataset)
        if job.kind == "base":
            self._base(job, make=True)
        elif job.kind == "original":
            self._trained(job, data, recipe)
        else:
            self._reference(job, job.number)
        return []

    def _yardstick_rows(self, job: Job) -> list[rows.Row]:
        start = time.perf_counter()
        original, references, name = self._yardstick(job)
        split = self._asked(job)[1]
        models = {"original": original}
        if "base" in self.recipe.measured_once:
            models["base"] = self._plain(job)
        stages = scenes(self._ground(job), models, references)
        found = {
            n: {k: evaluate(m, scene) for k, m in self._metrics().items()} for n, scene in stages.items()
        }
        said = {n: self._verdict(job, one) for n, one in {**models, **references}.items()}
        self._attack_once(job, stages["original"])
        seconds = time.perf_counter() - start
        return [
            rows.explained(self._row(job, n, found[n], split, name, seconds, verdict=said[n]))
            for n in self.recipe.measured_once
        ]

    def _attack_once(self, job: Job, scene: Scene) -> None:
        """Find for all cells what the recipe's columns ask of the original and of the retrains."""
        if not self.recipe.columns:
            return
        try:
            with self._yardstick_models(job):
                for metric in chosen_metrics(self.recipe.columns).values():
                    evaluate(metric, scene)
                self._keep_found(job)
        except StorageError:
            raise
        except Exception:  # an attack that fails is found to fail, and told, by each cell
            self._tidy()

    def _metrics(self) -> dict[str, Metric]:
        """The metrics of every row."""
        if self.recipe.costs_only:
            return chosen_metrics([rows.metric_of(c) for c in rows.COSTS])
        return chosen_metrics(ANSWERS)

    # A method on a request.

    def _cell(self, job: Job, settings: Mapping[str, Any]) -> rows.Row:
        start = time.perf_counter()
        try:
            row = self._measured(job, settings, start)
        except StorageError:  # of the disk, not of the method: no row, so the same command does it again
            raise
        except Exception as error:
            row = self.failed(job, told(error), settings, time.perf_counter() - start)
            if row["failure"].startswith(rows.NOTHING):  # beside this original; beside another it may not
                row["yardstick"] = self._yardstick(job)[2]
        self._tidy()
        return row

    def _measured(self, job: Job, settings: Mapping[str, Any], start: float) -> rows.Row:
        assert job.ask is not None
        opened, (request, split) = self._opened(job), self._asked(job)
        config = opened.recipe.config_of(job.method)
        config = search.with_settings(config, settings) if settings else config
        used = time.process_time()
        with Meter() as meter:
            if job.ask.parts > 1:
                outcome = one_after_the_other(
                    opened,
                    request,
                    job.ask.parts,
                    job.method,
                    config,
                    seed=job.seed,
                    as_trained=job.ask.as_trained,
                    reporter=self.reporter,
                )
            else:
                outcome, _ = unlearn(
                    opened, request, job.method, config, seed=job.seed, reporter=self.reporter
                )
        used = time.process_time() - used
        # Answers to D_t and of retrains are opened when nothing can look at them any more.
        ground, (original, references, yardstick) = self._ground(job), self._yardstick(job)
        new = candidate(outcome, meter)
        new.timed_on = timed_on(self.shared)
        if nothing_happened(original.logits["forget"], ground.logits(new, "forget")):
            raise RefusedError(f"{rows.NOTHING}: the answers on 32 probe prompts are the original's")
        scene = scenes(ground, {"original": original, job.method: new}, references)[job.method]
        found = {key: evaluate(metric, scene) for key, metric in self._metrics().items()}
        if self.recipe.columns:
            with self._yardstick_models(job):
                for key, metric in chosen_metrics(self.recipe.columns).items():
                    try:
                        found[key] = evaluate(metric, scene)
                    except (
                        Exception
                    ) as error:  # an attack that fails is a gap in the row and no failed method
                        found[key] = Value.none(told(error))
        verdict, latency = self._verdict(job, new), latency_ratio(ground, opened.recommender.model, new)
        row = self._row(
            job,
            job.method,
            found,
            split,
            yardstick,
            time.perf_counter() - start,
            verdict=verdict,
            stop_reason=outcome.stop_reason,
            method_config=_as_run(config, outcome),
            settings=dict(settings),
            cpu_s=used,
            latency_ratio=latency,
            **explained(outcome),
        )
        row = rows.explained(row)
        row["predictions"] = self._keep(row, new)
        return row

    def _plain(self, job: Job) -> Candidate:
        """The model before fine-tuning, scored once for all cells of a request."""
        place = (job.dataset, job.model, job.seed, job.request)
        found: Candidate = self._once(
            "plain",
            place,
            lambda: Candidate(task_for(self._opened(job), self._asked(job)[1], seed=job.seed).base_model()),
        )
        return found

    def _verdict(self, job: Job, new: Candidate) -> rows.Row | None:
        """What `curerec evaluate --verdict` would say of a model, without its numbers."""
        if self.recipe.costs_only:
            return None
        opened, split, original = self._opened(job), self._asked(job)[1], self._yardstick(job)[0]
        found = judge(opened, split, original, new, self._plain(job), ground=self._ground(job))
        return {
            "verified": found["verified"],
            "failed": [c["name"] for c in found["checks"] if c["passed"] is False],
            "open": [c["name"] for c in found["checks"] if c["passed"] is None],
        }

    def _keep(self, row: rows.Row, new: Candidate) -> str:
        """P(yes) of each example, for the significance test; the order is that of the yardstick.

        The file is named by the row's key and the answers: where a kill comes before the row, the earlier
        row of the same key still has the file with its own.
        """
        about = {"row": json.dumps(rows.row_key(row))}
        parts = [part for part in PREDICTED if part in self.parts]
        arrays = {part: p_yes(new.logits[part]).astype(np.float32) for part in parts}
        answers = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
        name = f"{kept.digest({**about, 'answers': answers})[:16]}.safetensors"
        kept.write_arrays(self.out / kept.PREDICTIONS / name, arrays, about)
        return name

    def _row(
        self,
        job: Job,
        method: str,
        found: Mapping[str, Value],
        split: ForgetSplit,
        yardstick: str,
        seconds: float,
        **more: Any,
    ) -> rows.Row:
        only = self.recipe.costs_only
        metrics: dict[str, Any] = {}
        for key, value in found.items():
            metrics |= cells(METRICS[key], value)
        made = rows.measured(metrics, costs_only=only)
        why = {rows.column_of(key): value.missing for key, value in found.items() if value.missing}
        made["missing"] = {**why, **made["missing"]}
        scale = self._scale(job)
        return {
            **rows.about(self.recipe, job, method, shared=self.shared),
            **made,
            **(dict.fromkeys(scale) if only else scale),
            **{f"n_{part}": len(getattr(split, part)) for part in ("forget", "retain", *PARTS[1:])},
            **rows.of_data(self._opened(job).data),
            "base": self._opened(job).recommender.base["name"],
            "yardstick": yardstick,
            "wall_s": seconds,
            **more,
        }

    def failed(self, job: Job, failure: str, settings: Mapping[str, Any], seconds: float = 0.0) -> rows.Row:
        """The row of a cell that came to nothing: like any other, of these data and settings alone."""
        return {
            **rows.about(self.recipe, job, job.method, shared=self.shared),
            **self._of_data(job),
            "settings": dict(settings),
            "failure": failure,
            "missing": dict.fromkeys((*rows.COLUMNS, *rows.FURTHER, rows.LATENCY), "the cell failed"),
            "wall_s": seconds,
        }

    def lost(self, job: Job, failure: str, settings: Mapping[str, Any]) -> tuple[str, rows.Row]:
        """File and row of a cell or a trial whose process died."""
        if job.kind == "cell":
            return ROWS, self.failed(job, failure, settings)
        return TRIALS, {**self._trial_about(job), **self._of_data(job), "failure": failure}

    def _of_data(self, job: Job) -> rows.Row:
        """Digests of a job's data; None where these are what cannot be read."""
        try:
            return rows.of_data(self.data(job.dataset))
        except CurerecError:
            return dict.fromkeys(rows.OF_DATA)

    # A setting of a method on the development seed.

    def _trial_about(self, job: Job) -> rows.Row:
        settings = tries_of(self.recipe, job.dataset, job.model, job.method)[job.number]
        return {
            "dataset": job.dataset,
            "model": job.model,
            "method": job.method,
            "request": job.request,
            "seed": job.seed,
            "number": job.number,
            "settings": settings,
            "config_hash": config_hash(self.recipe, job),
            "failure": None,
            "versions": versions(),
        }

    def _trial(self, job: Job) -> rows.Row:
        start = time.perf_counter()
        row = self._trial_about(job)
        settings = row["settings"]
        try:
            opened = self._opened(job)
            row |= rows.of_data(opened.data)
            row[rows.ORIGINAL] = opened.recommender.card["weights_sha256"]
            task = blind_task(opened, drawn_request(opened.data, opened.recipe, opened.split), seed=job.seed)
            task.clock = Clock(self.reporter)
            target = self.recipe.search.target if self.recipe.search else None
            before = self._once(
                "before",
                (job.dataset, job.model, job.seed, job.request),
                lambda: search.Before.of(task, target),
            )
            config = opened.recipe.config_of(job.method)
            if settings:
                config = search.with_settings(config, settings)
            row |= search.judged(task, before, carry_out(task, job.method, config))
        except StorageError:  # as in a cell; a setting that was not tried would count as one that failed
            raise
        except Exception as error:
            row["failure"] = told(error)
        self._tidy()
        return {**row, "wall_s": time.perf_counter() - start}

    def _tidy(self) -> None:
        if torch.cuda.is_available():
            gc.collect()  # objectives and tasks know each other, so counting references leaves them
            with contextlib.suppress(RuntimeError):  # of a GPU that is lost; that is found out by who asks
                torch.cuda.empty_cache()


def _as_run(config: Strict | None, outcome: Outcome) -> dict[str, Any] | None:
    """Settings of a method as plain values, with the forget loss that its loop had.

    ``ga_kl`` has the settings of ``npo`` with another loss, which its configuration does not name; it is left
    as it is, since :func:`curerec.bench.plan.config_hash` knows rows by it.
    """
    if config is None:
        return None
    values = config.model_dump(mode="json")
    ran = getattr(outcome.details.get("update"), "forget_loss", None)
    return values | {"forget_loss": ran} if ran is not None and "forget_loss" in values else values
