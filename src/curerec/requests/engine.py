"""The stages carried out by the package's own pipeline.

Each stage starts from the same random state, so that a stage taken from an earlier process changes nothing in
the ones after it.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from curerec.data.cache import retain_side_at
from curerec.data.forget import control_without, hidden_in_training, without_rows
from curerec.data.splits import examples
from curerec.errors import RequestError
from curerec.interactions import digest_of_titles
from curerec.methods import METHODS
from curerec.methods.cure.method import circuit_of, groups_of, update_by_groups
from curerec.models import check_asked, check_finite
from curerec.opened import Opened
from curerec.pipeline import check_method, deterministic, prepare, task_for
from curerec.progress import Clock, Reporter
from curerec.recommender import storage, stored_answers, waypoints
from curerec.recommender.units import units_of
from curerec.records import Examples, ForgetSplit
from curerec.reports.build import update_part
from curerec.requests import store as stores
from curerec.requests.judging import judged
from curerec.requests.kept_answers import handed_on
from curerec.requests.lock import runner
from curerec.requests.opening import opened_version
from curerec.requests.retain_sides import list_retain_sides
from curerec.requests.stage_files import read_circuit, read_groups, stored_circuit, stored_groups
from curerec.requests.stages import RETRAIN, Job


def prepare_next(store: stores.Store, seed: int, reporter: Reporter) -> None:
    """Leave what no request changes (:func:`curerec.pipeline.prepare`) for those of the version in force.

    Under the store's lock: else a run could meanwhile destroy what was left of this version, and then find
    more of it left.

    Args:
        store: opened.
        seed: of the requests to come.
        reporter: told of progress.

    Raises:
        RefusedError: a run is at work.
        CurerecError: the version cannot be read or explained; its next request would say the same.
    """
    with runner(store.lock):
        table = store.table()
        nothing = np.zeros(len(table.data), bool)
        base = store.ledger.meta("base")
        recipe, folder = store.policy.recipe, store.version_folder()
        job = Job(folder, table, nothing, "cure", seed, base, reporter=reporter, recipe=recipe)
        engine = CureEngine(job)
        side = retain_side_at(engine.opened.recommender.card["weights_sha256"])
        try:
            prepare(engine.opened, side, engine.config, seed=seed, clock=engine.clock)
        finally:
            list_retain_sides(store)  # now: the process of the next commit may have another cache


class CureEngine:
    """Stages of one batch; see :class:`curerec.requests.stages.Engine`."""

    def __init__(self, job: Job) -> None:
        check_method(job.method, saved=True)
        self.job = job
        self.clock = Clock(job.reporter)

    @cached_property
    def opened(self) -> Opened:
        """The version in force."""
        return opened_version(self.job)

    @cached_property
    def split(self) -> ForgetSplit:
        """The request applied."""
        job = self.job
        if job.method != RETRAIN:
            table, hidden = job.table, job.deleted | job.table.new
            found = without_rows(table.data, table.split, hidden, source="request")
            return replace(found, deleted=job.deleted)
        return _for_retrain(self.opened, job.deleted)

    @cached_property
    def config(self) -> Any:
        """The method's configuration, of the recipe."""
        return None if self.job.method == RETRAIN else self.opened.recipe.config_of(self.job.method)

    @cached_property
    def task(self) -> Any:
        """The request as a method sees it.

        Raises:
            ModelError: rows that a retrain takes up have titles too long for the model's positions.
            RequestError: as :func:`curerec.opened.check_lengthened`.
        """
        opened, part = self.opened, self.opened.split
        if self.job.method == RETRAIN:  # no training looked at them
            check_asked(opened.recommender, opened.data, (part.train, part.control, part.valid, part.test))
        side = retain_side_at(opened.recommender.card["weights_sha256"])
        return task_for(opened, self.split, seed=self.job.seed, clock=self.clock, retain_side=side)

    def circuit(self) -> dict[str, Any]:
        """The core circuit; nothing where the method has none or finds it by itself."""
        if self.job.method != "cure":
            return {}
        with deterministic(self.job.seed):
            found = circuit_of(self.task, self.config)
        kept = "circuit" in self.task.shared.get("kept", ())
        return {**stored_circuit(found), "kept": kept, "stages": dict(self.clock.seconds)}

    def groups(self, circuit: dict[str, Any]) -> dict[str, Any]:
        """Roles of the units; nothing where the method has none or finds them by itself."""
        if self.job.method != "cure":
            return {}
        before = dict(self.clock.seconds)
        with deterministic(self.job.seed):
            _, found = groups_of(self.task, self.config, read_circuit(circuit))
        kept = "contributions" in self.task.shared.get("kept", ())
        seconds = {k: v for k, v in self.clock.seconds.items() if k not in before}
        return {**stored_groups(found), "kept": kept, "stages": seconds}

    def update(self, circuit: dict[str, Any], groups: dict[str, Any], out: Path) -> dict[str, Any]:
        """Unlearn, and write the recommender; its card holds no date and no id: equal work, equal bytes."""
        before = dict(self.clock.seconds)
        with deterministic(self.job.seed):
            if self.job.method == "cure":
                units = units_of(self.opened.recommender.model, self.config.granularity)
                outcome = update_by_groups(
                    self.task, self.config, units, read_groups(groups), read_circuit(circuit), "cure"
                )
            else:
                outcome = METHODS[self.job.method][0](self.task, self.config)
        check_finite(outcome.model)
        card = copy.deepcopy(self.opened.recommender.card)
        of_the_old = (
            "format", "weights_sha256", "train_time_s", "timed_on", waypoints.DIGEST,
            *stored_answers.DIGESTS.values(),
        )  # fmt: skip
        card = {k: v for k, v in card.items() if k not in of_the_old}
        steps = [] if self.job.method == RETRAIN else card.get("unlearned", [])
        card["unlearned"] = [*steps, {"method": outcome.method}]
        left = ~self.job.deleted if self.job.deleted.any() else None
        # Of the table that it will stand beside: rows may have come in since, with titles of their own.
        table = self.job.table
        titles = table.titles_without(self.job.items) if left is not None else table.data.titles
        of_data = {"fingerprint": table.data.fingerprint_of(left), "titles": digest_of_titles(titles)}
        card["data"] = {**card["data"], **of_data}
        new = replace(self.opened.recommender, model=outcome.model, card={**card, "committed": True})
        storage.write_model(new.model, new.tokenizer, out)
        answers = handed_on(self.job, self.opened, self.split.retain)
        if answers is not None:
            digest = stored_answers.write(out, new, answers, stored_answers.AS_TRAINED)
            new.card[stored_answers.AS_TRAINED_DIGEST] = digest
        storage.write_card(new, out)
        return {
            "t_core_s": outcome.t_core_s,
            "n_trainable": outcome.n_trainable,
            "update": update_part(outcome),
            "answers_kept": 0 if answers is None else int(np.isfinite(answers.logits).all(1).sum()),
            "stages": {k: v for k, v in self.clock.seconds.items() if k not in before},
        }

    def verdict(self, before: dict[str, dict[str, Any]], adapter: Path) -> dict[str, Any]:
        """Judge the saved weights; see :func:`curerec.requests.judging.judged`."""
        return judged(self.job, self.opened, self.split, self.config, before, adapter)


def _for_retrain(opened: Opened, deleted: np.ndarray) -> ForgetSplit:
    """As :func:`without_rows`, also where no training target is deleted."""
    data, split = opened.data, opened.split

    def rebuilt(part: Examples, hidden: np.ndarray = deleted) -> Examples:
        return examples(data, part.target[~deleted[part.target]], deleted=hidden, history=part.places)

    held = hidden_in_training(split, deleted)
    retain = rebuilt(split.train, held)
    if len(retain) == 0:
        raise RequestError(
            "the request deletes all training data", where="request", mend="Remove the store instead"
        )
    gone = deleted[split.train.target]
    control = (
        control_without(data, split.control, deleted, held) if gone.any() else rebuilt(split.control, held)
    )
    return ForgetSplit(
        split.train.take(gone), retain, control, rebuilt(split.valid), rebuilt(split.test), deleted
    )
