"""The last stage of a batch: the saved weights judged by themselves, and the record of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from curerec.evaluation.auc import auc_interval
from curerec.evaluation.divergence import jsd_each
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.utility import utility
from curerec.machine import machine, versions
from curerec.measure import Candidate, Measured, candidate
from curerec.models import device, logits_of
from curerec.opened import Opened
from curerec.pipeline import deterministic
from curerec.recommender import storage
from curerec.recommender.units import units_of
from curerec.recording import record_of
from curerec.records import ForgetRequest, ForgetSplit, Outcome, Recommender
from curerec.requests.opening import base_of
from curerec.requests.stage_files import read_circuit, read_groups
from curerec.requests.stages import Job
from curerec.requests.store import config_digest
from curerec.result import STAGE, result_of

BEFORE = ("circuit", "groups", "update")
Stages = dict[str, dict[str, Any]]


def judged(
    job: Job, opened: Opened, split: ForgetSplit, config: Any, before: Stages, adapter: Path
) -> dict[str, Any]:
    """Judge the saved weights, loaded from the folder that is to be committed.

    Args:
        job: what the batch works on.
        opened: the version in force.
        split: the request applied.
        config: of the method; None for a retrain.
        before: answers of the stages before, by name.
        adapter: folder of the new weights.

    Returns:
        As :meth:`curerec.requests.stages.Engine.verdict`.
    """
    loaded = storage.load(adapter, opened.base, device=device())
    outcome = _outcome(job, opened, config, before, loaded)
    advance = job.reporter.stage(STAGE)
    if len(split.forget) == 0:
        old, new = Candidate(opened.recommender.model), candidate(outcome)
        found = {**_use_alone(opened, split, old, new), "report": None}
    else:
        with deterministic(job.seed):
            made = result_of(opened, split, outcome, job.method, seed=job.seed)
        measured, verdict, old, new = made.measured, made.verdict, made.original, made.new
        output = loaded.card["weights_sha256"]
        found = {
            "verdict": verdict,
            "measurements": [_membership(job, split, measured), *_utility(opened, split, old, new)],
            "drift": _drift(split, old, new),
            "report": _report(
                job,
                opened,
                split,
                measured,
                outcome,
                verdict=verdict,
                output=output,
                update=before["update"]["update"],
            ),
        }
    advance(1, 1)
    return {**_about(opened), **found}


def _about(opened: Opened) -> dict[str, Any]:
    """Algorithm, base, versions and machine, as the ledger has them."""
    config = _config(opened)
    return {
        "algorithm": {"config_sha256": config_digest(config), "config": config},
        "base": base_of(opened),
        "versions": versions(),
        "machine": machine(),
    }


def _config(opened: Opened) -> dict[str, Any]:
    """The recipe in force, without paths: they may name the machine, or who works on it."""
    config = opened.recipe.model_dump(mode="json")
    config.pop("data")
    config["model"]["base"] = Path(config["model"]["base"]).name
    return config


def _outcome(job: Job, opened: Opened, config: Any, before: Stages, loaded: Recommender) -> Outcome:
    """What the stages before came to, put together again from their answers."""
    update = before["update"]
    seconds: dict[str, float] = {}
    for stage in BEFORE:
        seconds |= before[stage].get("stages", {})
    parts = {"circuit": "circuit", "groups": "contributions"}
    kept = [part for stage, part in parts.items() if before[stage].get("kept")]
    units = units_of(opened.recommender.model, config.granularity) if before["groups"] else None
    return Outcome(
        job.method,
        loaded.model,
        update["t_core_s"],
        sum(seconds.values()),
        n_trainable=update["n_trainable"],
        circuit=read_circuit(before["circuit"]) if before["circuit"] else None,
        groups=read_groups(before["groups"]) if before["groups"] else None,
        details={"units": units, "stages": seconds, "kept": kept},
    )


def _report(
    job: Job,
    opened: Opened,
    split: ForgetSplit,
    measured: Measured,
    outcome: Outcome,
    *,
    verdict: dict[str, Any],
    output: str,
    update: dict[str, Any],
) -> dict[str, Any]:
    """The record of the request, without what would tell who asked."""
    kind: Any = job.kind or "interactions"  # of several kinds, which the record then has as none
    asked = ForgetRequest(kind, ("withheld",) * max(1, job.n_ids))
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
        output=output,
        update=update,
        seen=job.table.public,
    )
    if job.kind is None:
        report["request"] |= {"kind": None, "share": None}
    # Both digests are unkeyed: who guesses the deleted rows could test the guess by them.
    report["request"]["digest"] = job.pseudonym
    report["dataset"]["fingerprint"] = "withheld"
    report["model"]["base"] = Path(report["model"]["base"]).name
    report["config"] = _config(opened)
    return report


def _membership(job: Job, split: ForgetSplit, measured: Measured) -> dict[str, Any]:
    """AUC of the loss attack against the new weights, with its 95 % interval."""
    shown = ("membership_auc", "membership_low", "membership_high")
    value, low, high = (measured.metrics[job.method].get(name) for name in shown)
    sizes = {"n_forget": len(split.forget), "n_control": len(split.control)}
    return {"name": "membership_auc", "value": value, "low": low, "high": high, **sizes}


def _use_alone(opened: Opened, split: ForgetSplit, old: Candidate, new: Candidate) -> dict[str, Any]:
    """Judgement of a retrain where there is nothing to forget: its use alone."""
    for one in (old, new):
        one.logits["valid"] = logits_of(opened.recommender, opened.data, split.valid, one.model)
    return {
        "verdict": {"verified": None, "checks": []},
        "measurements": _utility(opened, split, old, new),
        "drift": _drift(split, old, new),
    }


def _utility(opened: Opened, split: ForgetSplit, old: Candidate, new: Candidate) -> list[dict[str, Any]]:
    """AUC on D_v before and after, with 95 % intervals over users."""
    found, label = [], split.valid.label
    users = opened.data.user_code[split.valid.target]
    for name, one in (("valid_auc_before", old), ("valid_auc_after", new)):
        margin = one.logits["valid"][:, 1] - one.logits["valid"][:, 0]
        sides = [label == 1, label == 0]
        groups = (users[sides[0]], users[sides[1]]) if len(np.unique(users)) > 1 else None
        low, high = auc_interval(*(margin[s] for s in sides), groups=groups)
        value = utility(one.logits["valid"], label)["auc"]
        found.append({"name": name, "value": value, "low": low, "high": high, "n": len(label)})
    return found


def _drift(split: ForgetSplit, old: Candidate, new: Candidate) -> dict[str, float]:
    """Mean Jensen-Shannon distance of the answers on D_v (square root of nats); fall of the AUC there."""
    was, now = p_yes(old.logits["valid"]), p_yes(new.logits["valid"])
    auc = [utility(c.logits["valid"], split.valid.label)["auc"] for c in (old, new)]
    return {"distance": float(np.sqrt(jsd_each(was, now)).mean()), "auc_drop": float(auc[0] - auc[1])}
