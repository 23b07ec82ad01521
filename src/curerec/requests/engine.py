"""The stages carried out by the package's own pipeline; the only file here that loads models.

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

from curerec import recipes
from curerec.data.cache import retain_side_at
from curerec.data.forget import without_rows
from curerec.data.splits import examples
from curerec.errors import ConfigError, RequestError
from curerec.evaluation.auc import auc_interval
from curerec.evaluation.divergence import jsd_each
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.utility import utility
from curerec.interactions import Interactions
from curerec.machine import machine, versions
from curerec.measure import Candidate, judge, measure
from curerec.methods import METHODS
from curerec.methods.cure.method import circuit_of, groups_of, update_by_groups
from curerec.models import check_finite, device, logits_of
from curerec.opened import Opened, base_model, open_recommender
from curerec.pipeline import check_method, deterministic, prepare, task_for
from curerec.progress import Clock, Reporter
from curerec.recipe import Recipe, recipe_of_card
from curerec.recommender import bases, storage, stored_answers
from curerec.recommender.units import units_of
from curerec.recording import record_of
from curerec.records import Examples, ForgetRequest, ForgetSplit, Outcome
from curerec.requests import store as stores
from curerec.requests.kept_answers import handed_on
from curerec.requests.lock import runner
from curerec.requests.policy import Policy
from curerec.requests.stage_files import read_circuit, read_groups
from curerec.requests.stages import RETRAIN, Job
from curerec.requests.table import of_split
from curerec.splitting import users_by_part


def init(
    root: Path,
    recommender: Path,
    data: Interactions,
    *,
    base: Path | None = None,
    policy: Policy | None = None,
) -> str:
    """Make a store of a recommender that ``curerec train`` or ``curerec unlearn`` wrote.

    Args:
        root: folder to make.
        recommender: its folder; copied, and listed as an artefact outside of the store.
        data: what it was trained on; copied.
        base: folder of its base model, where its name alone does not find it.
        policy: of the operator.

    Returns:
        Content hash of the first version.

    Raises:
        CurerecError: recommender, data or folder cannot be used.
    """
    policy = policy or Policy()
    check_method(policy.method)
    opened = open_recommender(recommender, data, base=base)
    _settings(opened.recipe, policy.recipe)  # refused now, not when a request is due
    public = users_by_part(data, opened.recipe.split)[0] if opened.recipe.split.public_share else np.array([])
    table = of_split(data, opened.split, public)

    def fill(folder: Path) -> dict[str, Any]:
        stores.copy_files(recommender, folder)
        card = opened.recommender.card
        card = {k: v for k, v in card.items() if k not in ("format", "weights_sha256")}
        card["unlearned"] = [{"method": step["method"]} for step in card.get("unlearned", [])]
        storage.write_card(replace(opened.recommender, card={**card, "committed": True}), folder)
        return {"base": _base(opened), "versions": versions()}

    where = str(base.resolve()) if base is not None else None
    return stores.create(root, table, fill, policy=policy, source=recommender, base=where)


def _settings(recipe: Recipe, named: str | None) -> Recipe:
    """The recipe that requests are carried out by: what was trained, with the policy's settings of methods.

    Args:
        recipe: stored with the recommender.
        named: the recipe that the policy names, or None.

    Raises:
        ConfigError: no recipe of that name ships, or its settings are of another kind of model.
    """
    if named is None:
        return recipe
    if named not in recipes.names():  # a file could be another one, or gone, when a request is due
        raise ConfigError(
            f"no recipe {named} ships with curerec",
            where="policy, recipe",
            mend=f"Choose from {', '.join(recipes.names())}; a recipe of your own goes to `curerec train`",
        )
    return recipe.with_settings_of(recipes.load_recipe(named))


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
        prepare(engine.opened, side, engine.config, seed=seed, clock=engine.clock)


class CureEngine:
    """Stages of one batch; see :class:`curerec.requests.stages.Engine`."""

    def __init__(self, job: Job) -> None:
        check_method(job.method)
        self.job = job
        self.clock = Clock(job.reporter)

    @cached_property
    def opened(self) -> Opened:
        """The version in force, with the stored table and its stored split."""
        job = self.job
        card = storage.read_card(job.folder)
        recipe = _settings(recipe_of_card(card, where="recommender, its recipe")[0], job.recipe)
        base = Path(job.base) if job.base else bases.resolve(card["base"]["name"])
        recommender = storage.load(job.folder, base, device=device())
        data, split = job.table.data, job.table.split
        answered = stored_answers.read(recommender, data, stored_answers.asked_in_training(split))
        as_trained = None
        if job.keep_answers:
            as_trained = stored_answers.read(recommender, data, split.train, stored_answers.AS_TRAINED)
        return Opened(recommender, recipe, data, split, base, answered=answered, as_trained=as_trained)

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
        """The request as a method sees it."""
        side = retain_side_at(self.opened.recommender.card["weights_sha256"])
        return task_for(self.opened, self.split, seed=self.job.seed, clock=self.clock, retain_side=side)

    def circuit(self) -> dict[str, Any]:
        """The core circuit; nothing where the method has none or finds it by itself."""
        if self.job.method != "cure":
            return {}
        with deterministic(self.job.seed):
            found = circuit_of(self.task, self.config)
        return {
            "modules": found.modules,
            "scores": found.scores,
            "exact": [None if np.isnan(x) else float(x) for x in found.exact],
            "core": found.core,
            "curve": found.curve,
            "faithfulness": found.faithfulness,
            "completeness": found.completeness,
            "jaccard": found.jaccard,
            "jaccard_chance": found.jaccard_chance if np.isfinite(found.jaccard_chance) else None,
            "scorer": found.scorer,
            "pairs": found.pairs,
            "kept": "circuit" in self.task.shared.get("kept", ()),
            "stages": dict(self.clock.seconds),
        }

    def groups(self, circuit: dict[str, Any]) -> dict[str, Any]:
        """Roles of the units; nothing where the method has none or finds them by itself."""
        if self.job.method != "cure":
            return {}
        before = dict(self.clock.seconds)
        with deterministic(self.job.seed):
            _, found = groups_of(self.task, self.config, read_circuit(circuit))
        return {
            "modules": found.modules,
            "role": found.role,
            "forget_score": found.forget_score,
            "retain_score": found.retain_score,
            "agreement": found.agreement,
            "kept": "contributions" in self.task.shared.get("kept", ()),
            "stages": {k: v for k, v in self.clock.seconds.items() if k not in before},
        }

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
        of_the_old = ("format", "weights_sha256", "train_time_s", *stored_answers.DIGESTS.values())
        card = {k: v for k, v in card.items() if k not in of_the_old}
        steps = [] if self.job.method == RETRAIN else card.get("unlearned", [])
        card["unlearned"] = [*steps, {"method": outcome.method}]
        left = ~self.job.deleted if self.job.deleted.any() else None
        card["data"] = {**card["data"], "fingerprint": self.job.table.data.fingerprint_of(left)}
        new = replace(self.opened.recommender, model=outcome.model, card={**card, "committed": True})
        storage.write_model(new.model, new.tokenizer, out)
        answers = handed_on(self.job, self.opened, self.split.retain)
        if answers is not None:
            digest = stored_answers.write(out, new, answers, stored_answers.AS_TRAINED)
            new.card[stored_answers.AS_TRAINED_DIGEST] = digest
        storage.write_card(new, out)
        return {
            "t_core_s": outcome.t_core_s,
            "trace": outcome.trace,
            "stop_reason": outcome.stop_reason,
            "n_trainable": outcome.n_trainable,
            "steps": outcome.details.get("steps"),
            "answers_kept": 0 if answers is None else int(np.isfinite(answers.logits).all(1).sum()),
            "stages": {k: v for k, v in self.clock.seconds.items() if k not in before},
        }

    def verdict(self, before: dict[str, dict[str, Any]], adapter: Path) -> dict[str, Any]:
        """Judge the saved weights by themselves, loaded from the folder that is to be committed."""
        job, opened, split = self.job, self.opened, self.split
        loaded = storage.load(adapter, opened.base, device=device())
        update = before["update"]
        seconds: dict[str, float] = {}
        for stage in ("circuit", "groups", "update"):
            seconds |= before[stage].get("stages", {})
        total = sum(seconds.values())
        old = Candidate(opened.recommender.model)
        new = Candidate(loaded.model, update["t_core_s"], total, update["n_trainable"])
        advance = job.reporter.stage("measure")
        about: dict[str, Any] = {
            "algorithm": {
                "config_sha256": opened.recipe.digest,
                "config": opened.recipe.model_dump(mode="json"),
            },
            "base": _base(opened),
            "versions": versions(),
            "machine": machine(),
        }
        about["algorithm"]["config"].pop("data")  # a path may name the machine
        if len(split.forget) == 0:
            advance(1, 1)
            return {**about, **_useful(opened, split, old, new), "report": None}
        with deterministic(job.seed):
            measured = measure(opened, split, {"original": old, job.method: new}, {})
            verdict = judge(opened, split, old, new, Candidate(base_model(opened, seed=job.seed)))
        advance(1, 1)
        metrics = measured.metrics[job.method]
        parts = {"circuit": "circuit", "groups": "contributions"}
        kept = [part for stage, part in parts.items() if before[stage].get("kept")]
        circuit = read_circuit(before["circuit"]) if before["circuit"] else None
        units = units_of(opened.recommender.model, self.config.granularity) if before["groups"] else None
        outcome = Outcome(
            job.method,
            loaded.model,
            update["t_core_s"],
            total,
            tuple(update["trace"]),
            update["stop_reason"],
            update["n_trainable"],
            circuit,
            read_groups(before["groups"]) if before["groups"] else None,
            {"steps": update["steps"], "units": units, "stages": seconds, "kept": kept},
        )
        asked = ForgetRequest(job.kind, ("withheld",) * max(1, job.n_ids))  # type: ignore[arg-type]
        report = record_of(
            opened,
            asked,
            split,
            measured,
            outcome,
            method=job.method,
            config=opened.recipe,
            seed=job.seed,
            verdict_part=verdict,
            output=loaded.card["weights_sha256"],
        )
        # Both digests are unkeyed: who guesses the deleted rows could test the guess by them.
        report["request"]["digest"] = job.pseudonym
        report["dataset"]["fingerprint"] = "withheld"
        report["config"].pop("data")
        shown = ("membership_auc", "membership_low", "membership_high")
        value, low, high = (metrics[name] for name in shown)
        sizes = {"n_forget": len(split.forget), "n_control": len(split.control)}
        measurements = [
            {"name": "membership_auc", "value": value, "low": low, "high": high, **sizes},
            *_utility(split, old, new),
        ]
        return {
            **about,
            "verdict": verdict,
            "measurements": measurements,
            "drift": _drift(split, old, new),
            "report": report,
        }


def _for_retrain(opened: Opened, deleted: np.ndarray) -> ForgetSplit:
    """As :func:`without_rows`, also where no training target is deleted."""
    data, split = opened.data, opened.split

    def rebuilt(part: Examples) -> Examples:
        return examples(data, part.target[~deleted[part.target]], deleted=deleted, history=part.places)

    retain = rebuilt(split.train)
    if len(retain) == 0:
        raise RequestError(
            "the request deletes all training data", where="request", mend="Remove the store instead"
        )
    gone = deleted[split.train.target]
    control = split.control if gone.any() else rebuilt(split.control)
    return ForgetSplit(
        split.train.take(gone), retain, control, rebuilt(split.valid), rebuilt(split.test), deleted
    )


def _useful(opened: Opened, split: ForgetSplit, old: Candidate, new: Candidate) -> dict[str, Any]:
    """Judgement of a retrain where there is nothing to forget: its use alone."""
    for one in (old, new):
        one.logits["valid"] = logits_of(opened.recommender, opened.data, split.valid, one.model)
    return {
        "verdict": {"verified": None, "checks": []},
        "measurements": _utility(split, old, new),
        "drift": _drift(split, old, new),
    }


def _utility(split: ForgetSplit, old: Candidate, new: Candidate) -> list[dict[str, Any]]:
    """AUC on D_v before and after, with 95 % intervals."""
    found, label = [], split.valid.label
    for name, one in (("valid_auc_before", old), ("valid_auc_after", new)):
        margin = one.logits["valid"][:, 1] - one.logits["valid"][:, 0]
        low, high = auc_interval(margin[label == 1], margin[label == 0])
        value = utility(one.logits["valid"], label)["auc"]
        found.append({"name": name, "value": value, "low": low, "high": high, "n": len(label)})
    return found


def _drift(split: ForgetSplit, old: Candidate, new: Candidate) -> dict[str, float]:
    """Mean Jensen-Shannon distance of the answers on D_v (square root of nats); fall of the AUC there."""
    was, now = p_yes(old.logits["valid"]), p_yes(new.logits["valid"])
    auc = [utility(c.logits["valid"], split.valid.label)["auc"] for c in (old, new)]
    return {"distance": float(np.sqrt(jsd_each(was, now)).mean()), "auc_drop": float(auc[0] - auc[1])}


def _base(opened: Opened) -> dict[str, str]:
    base = opened.recommender.base
    return {"name": Path(base["name"]).name, "sha256": base["sha256"]}


__all__ = ["CureEngine", "check_method", "init", "prepare_next"]
