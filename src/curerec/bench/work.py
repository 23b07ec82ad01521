"""What a worker does for each kind of job. Models are opened here and nowhere else."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curerec.bench import artefacts as kept
from curerec.bench import rows, search
from curerec.bench.blind import blind_task
from curerec.bench.failures import told
from curerec.bench.plan import Job, config_hash, tries_of
from curerec.bench.recipe import BenchRecipe
from curerec.bench.sequence import one_after_the_other
from curerec.bench.shapes import made_shape
from curerec.data.fetch import DATASETS, load
from curerec.errors import RefusedError
from curerec.evaluation import METRICS
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.cost import Meter
from curerec.evaluation.guard import nothing_happened
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.metric import Metric, Value, evaluate
from curerec.evaluation.residual import Reference
from curerec.evaluation.scene import PARTS, Ground, scenes
from curerec.measure import candidate, cells, chosen_metrics, ground_of
from curerec.models import base_folder
from curerec.pipeline import Opened, carry_out, unlearn
from curerec.progress import Clock, Reporter, Silent
from curerec.recommender.storage import read_card
from curerec.records import ForgetRequest, ForgetSplit, Interactions, Outcome
from curerec.splitting import drawn_request, granted

Done = list[tuple[str, rows.Row]]  # (file, row)
ROWS, TRIALS = "rows.jsonl", "trials.jsonl"
#: Metrics of every row: those of the answers that a row names.
ANSWERS = [*(rows.metric_of(c) for c in rows.COLUMNS if c not in rows.ATTACKS), *rows.FURTHER]
PREDICTED = ("forget", "test")  # parts whose P(yes) is kept of each cell


@dataclass
class Workshop:
    """A worker's bench: the recipe, where to write, and what was opened last.

    Attributes:
        recipe: of the run.
        out: folder of the run.
        places: where data sets are that their names do not find.
        shared: whether others work on the same machine.
        cache: of the user.
        reporter: told of stages.
    """

    recipe: BenchRecipe
    out: Path
    places: Mapping[str, str] = field(default_factory=dict)
    shared: bool = False
    cache: Path | None = None
    reporter: Reporter = field(default_factory=Silent)
    _data: dict[str, Interactions] = field(default_factory=dict)
    _last: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def do(self, job: Job, settings: Mapping[str, Any]) -> Done:
        """Do a job; the rows that it gives.

        Args:
            job: to do.
            settings: that the search chose for the method of a cell.

        Raises:
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
            kept.trained(
                data, recipe, self.out, base=self._base(job), cache=self.cache, reporter=self.reporter
            )
        else:
            self._reference(job, job.number)
        return []

    # What is opened once and used by many cells.

    def data(self, name: str) -> Interactions:
        """The interactions of a data set."""
        if name not in self._data:
            place = self.places.get(name) or self.recipe.datasets[name].get("data", name)
            form = None if place in DATASETS else self.recipe.datasets[name].get("format")
            self._data = {name: load(place, cache=self.cache, format=form)}  # one at a time: they are large
        return self._data[name]

    def _base(self, job: Job, *, make: bool = False) -> Path | None:
        shape = self.recipe.models[job.model].shape
        if shape is not None:
            titles = self.data(job.dataset).titles["title"].to_pylist()
            return made_shape(shape, titles, self.out / kept.BASES / f"{shape}-{job.dataset}")
        if make:
            recipe = self.recipe.setting(job.dataset, job.model, seed=job.seed)
            base_folder(self.data(job.dataset), recipe, cache=self.cache, clock=Clock(self.reporter))
        return None

    def _once(self, what: str, key: Any, make: Any) -> Any:
        """The last thing made of a kind, if it is of the same key."""
        held = self._last.get(what)
        if held is None or held[0] != key:
            self._last.pop(what, None)  # first gone, then made: two do not fit where one just does
            self._last[what] = (key, make())
        return self._last[what][1]

    def _opened(self, job: Job) -> Opened:
        def make() -> Opened:
            recipe = self.recipe.setting(job.dataset, job.model, ask=job.ask, seed=job.seed)
            data, base = self.data(job.dataset), self._base(job)
            folder = kept.trained(data, recipe, self.out, base=base, cache=self.cache, reporter=self.reporter)
            return kept.opened_with(folder, data, recipe, base, cache=self.cache)

        opened = self._once("opened", (job.dataset, job.model, job.seed, job.request), make)
        assert isinstance(opened, Opened)
        return opened

    def _asked(self, job: Job) -> tuple[ForgetRequest, ForgetSplit]:
        def make() -> tuple[ForgetRequest, ForgetSplit]:
            opened = self._opened(job)
            request = drawn_request(opened.data, opened.recipe, opened.split)
            return request, granted(opened.data, opened.recipe, opened.split, request)

        found: tuple[ForgetRequest, ForgetSplit] = self._once(
            "asked", (job.dataset, job.model, job.seed, job.request), make
        )
        return found

    def _reference(self, job: Job, number: int) -> Path:
        opened = self._opened(job)
        return kept.trained(
            opened.data,
            opened.recipe,
            self.out,
            without=self._asked(job)[0],
            number=number,
            base=self._base(job),
            cache=self.cache,
            reporter=self.reporter,
        )

    def _ground(self, job: Job) -> Ground:
        """What metrics have in common for a request: each part is encoded once for all its cells."""
        place = (job.dataset, job.model, job.seed, job.request)
        found: Ground = self._once(
            "ground", place, lambda: ground_of(self._opened(job), self._asked(job)[1], seed=job.seed)
        )
        return found

    # The yardstick: what every cell of a request is measured with.

    def _yardstick(self, job: Job) -> tuple[Candidate, dict[str, Candidate], str]:
        def make() -> tuple[Candidate, dict[str, Candidate], str]:
            opened, request = self._opened(job), self._asked(job)[0]
            assert opened.recommender.path is not None
            folders = {"original": opened.recommender.path}
            for k in range(self.recipe.retrains):
                folders["retrain" if k == 0 else f"retrain_{k + 1}"] = self._reference(job, k)
            cards = {name: read_card(folder) for name, folder in folders.items()}
            about = {name: card["weights_sha256"] for name, card in cards.items()}
            about["request"] = request.digest
            name = f"{kept.digest(about)[:16]}.safetensors"
            path = self.out / kept.YARDSTICKS / name
            arrays = kept.read_arrays(path, about)
            models = {
                n: Candidate(None, card["train_time_s"], card["train_time_s"], _trainable(opened))
                for n, card in cards.items()
            }
            if arrays is None or self.recipe.columns:  # attacks fine-tune or round the references, too
                for n, one in models.items():
                    one.model = (
                        opened.recommender.model
                        if n == "original"
                        else kept.opened_with(
                            folders[n], opened.data, opened.recipe, self._base(job), cache=self.cache
                        ).recommender.model
                    )
            if arrays is None:
                ground = self._ground(job)
                arrays = {f"{n}/{p}": ground.logits(one, p) for n, one in models.items() for p in PARTS}
                kept.write_arrays(path, arrays, about)
            for n, one in models.items():
                if not self.recipe.columns:
                    one.model = None
                one.logits = {p: arrays[f"{n}/{p}"] for p in PARTS}
                one.memory = dict(one.logits)
            return models.pop("original"), models, name

        found: tuple[Candidate, dict[str, Candidate], str] = self._once(
            "yardstick", (job.dataset, job.model, job.seed, job.request), make
        )
        return found

    def _yardstick_rows(self, job: Job) -> list[rows.Row]:
        start = time.perf_counter()
        original, references, name = self._yardstick(job)
        split = self._asked(job)[1]
        stages = scenes(self._ground(job), {"original": original}, references)
        found = {n: {k: evaluate(m, scene) for k, m in _answers().items()} for n, scene in stages.items()}
        seconds = time.perf_counter() - start
        return [
            rows.explained(self._row(job, n, found[n], split, name, seconds))
            for n in ("original", *references)
        ]

    # A method on a request.

    def _cell(self, job: Job, settings: Mapping[str, Any]) -> rows.Row:
        start = time.perf_counter()
        try:
            row = self._measured(job, settings, start)
        except Exception as error:
            row = self.failed(job, told(error), time.perf_counter() - start)
        self._tidy()
        return row

    def _measured(self, job: Job, settings: Mapping[str, Any], start: float) -> rows.Row:
        assert job.ask is not None
        opened, (request, split) = self._opened(job), self._asked(job)
        original, references, yardstick = self._yardstick(job)
        config = opened.recipe.config_of(job.method)
        config = search.with_settings(config, settings) if settings else config
        ground, used = self._ground(job), time.process_time()
        with Meter() as meter:
            if job.ask.parts > 1:
                outcome = one_after_the_other(
                    opened,
                    request,
                    job.ask.parts,
                    job.method,
                    config,
                    seed=job.seed,
                    reporter=self.reporter,
                )
            else:
                outcome, _ = unlearn(
                    opened, request, job.method, config, seed=job.seed, reporter=self.reporter
                )
        used = time.process_time() - used
        new = candidate(outcome, meter)
        if nothing_happened(original.logits["forget"], ground.logits(new, "forget")):
            raise RefusedError("nothing happened: the answers on 32 probe prompts are the original's")
        scene = scenes(ground, {"original": original, job.method: new}, references)[job.method]
        found = {key: evaluate(metric, scene) for key, metric in _answers().items()}
        if self.recipe.columns:
            original.model = opened.recommender.model
            for key, metric in chosen_metrics(self.recipe.columns).items():
                try:
                    found[key] = evaluate(metric, scene)
                except Exception as error:  # an attack that fails is a gap in the row and no failed method
                    found[key] = Value.none(told(error))
        row = self._row(
            job,
            job.method,
            found,
            split,
            yardstick,
            time.perf_counter() - start,
            stop_reason=outcome.stop_reason,
            method_config=config.model_dump(mode="json") if config is not None else None,
            settings=dict(settings),
            cpu_s=used,
            **_explained(outcome),
        )
        row = rows.explained(row)
        row["predictions"] = self._keep(row, new)
        return row

    def _keep(self, row: rows.Row, new: Candidate) -> str:
        """P(yes) of each example, for the significance test; the order is that of the yardstick."""
        about = {"row": json.dumps(rows.row_key(row))}
        name = f"{kept.digest(about)[:16]}.safetensors"
        arrays = {part: p_yes(new.logits[part]).astype(np.float32) for part in PREDICTED}
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
        why = {c: v.missing for c in rows.COLUMNS if (v := found.get(rows.metric_of(c))) and v.missing}
        made["missing"] = {**why, **made["missing"]}
        scale = self._scale(job)
        return {
            **rows.about(self.recipe, job, method, shared=self.shared),
            **made,
            **(dict.fromkeys(scale) if only else scale),
            **{f"n_{part}": len(getattr(split, part)) for part in ("forget", "retain", *PARTS[1:])},
            "fingerprint": self._opened(job).data.fingerprint,
            "base": self._opened(job).recommender.base["name"],
            "yardstick": yardstick,
            "wall_s": seconds,
            **more,
        }

    def _scale(self, job: Job) -> dict[str, Any]:
        """Floor and ceiling on D_f, and whether methods may be ranked by them."""
        original, references, _ = self._yardstick(job)
        if len(references) < 2:
            return {"floor": None, "ceiling": None, "rankable": None}
        yes = [p_yes(one.logits["forget"]) for one in references.values()]
        scale = Reference(np.stack(yes), p_yes(original.logits["forget"]))
        return {"floor": scale.floor, "ceiling": scale.ceiling, "rankable": scale.rankable}

    def failed(self, job: Job, failure: str, seconds: float = 0.0) -> rows.Row:
        """The row of a cell that came to nothing."""
        return {
            **rows.about(self.recipe, job, job.method, shared=self.shared),
            "failure": failure,
            "missing": dict.fromkeys(rows.COLUMNS, "the cell failed"),
            "wall_s": seconds,
        }

    def lost(self, job: Job, failure: str) -> tuple[str, rows.Row]:
        """File and row of a cell or a trial whose process died."""
        if job.kind == "cell":
            return ROWS, self.failed(job, failure)
        return TRIALS, {**self._trial_about(job), "failure": failure}

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
        }

    def _trial(self, job: Job) -> rows.Row:
        start = time.perf_counter()
        row = self._trial_about(job)
        settings = row["settings"]
        try:
            opened = self._opened(job)
            task = blind_task(opened, drawn_request(opened.data, opened.recipe, opened.split), seed=job.seed)
            task.clock = Clock(self.reporter)
            before = self._once(
                "before", (job.dataset, job.model, job.seed, job.request), lambda: search.Before.of(task)
            )
            config = opened.recipe.config_of(job.method)
            if settings:
                config = search.with_settings(config, settings)
            row |= search.judged(task, before, carry_out(task, job.method, config))
        except Exception as error:
            row["failure"] = told(error)
        self._tidy()
        return {**row, "wall_s": time.perf_counter() - start}

    def _tidy(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _answers() -> dict[str, Metric]:
    """The metrics of every row."""
    return chosen_metrics(ANSWERS)


def _trainable(opened: Opened) -> int:
    """Parameters that fine-tuning changed: the adapter's, or all."""
    model = opened.recommender.model
    lora = sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)
    return lora or sum(p.numel() for p in model.parameters())


def _explained(outcome: Outcome) -> dict[str, Any]:
    """What a circuit method says of its choice."""
    out: dict[str, Any] = {"latency_ratio": outcome.details.get("latency_ratio")}
    if outcome.circuit is not None:
        out |= {"circuit_size": len(outcome.circuit.core), "faithfulness": outcome.circuit.faithfulness}
    if outcome.groups is not None:
        out["group_agreement"] = float(outcome.groups.agreement.mean())
    return out
