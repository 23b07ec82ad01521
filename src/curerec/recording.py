"""The record of a request as plain values, from what its stages made and what was measured."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

from curerec.circuits.reading import attention_reading
from curerec.errors import ModelError
from curerec.machine import machine, peak_memory_bytes, versions
from curerec.measure import Measured
from curerec.opened import Opened
from curerec.prompts.encoding import Encoder, queries
from curerec.records import ForgetRequest, ForgetSplit, Outcome
from curerec.reports.build import circuit_part, groups_part, update_part
from curerec.reports.schema import SCHEMA
from curerec.splitting import base_share

READ_PROMPTS = 64  # validation prompts on which what the heads read is looked at
UNKNOWN_BASE = "what the base model was pre-trained on is not known here"


def record_of(
    opened: Opened,
    request: ForgetRequest,
    split: ForgetSplit,
    measured: Measured,
    outcome: Outcome | None,
    *,
    method: str,
    config: Any,
    seed: int,
    choice: str | None = None,
    verdict_part: dict[str, Any] | None = None,
    output: str | None = None,
    update: dict[str, Any] | None = None,
    seen: np.ndarray | None = None,
) -> dict[str, Any]:
    """The record of a request as plain values, ready for :func:`curerec.reports.schema.write_record`.

    Args:
        outcome: of the method; None where only stored models were compared.
        method: its name, that of its row in ``measured.metrics``.
        config: the recipe in force.
        choice: how an experiment's request was drawn.
        verdict_part: from :func:`judge`.
        output: sha256 of the unlearned weights.
        update: how they were moved (:func:`update_part`), where another process moved them and the outcome
            was put together from what it left; None: the outcome says.
        seen: bool [n_rows], rows that the base was pre-trained on, where they are stored: who was drawn for
            it cannot be found from ratings that have lost or gained people since.
    """
    data, model = opened.data, opened.recommender.model
    n_parameters = sum(p.numel() for p in model.parameters())
    missing = dict(measured.missing)
    base = base_share(data, opened.recipe, split.deleted, seen)
    if base is None:
        missing["request.n_base_users"] = missing["request.n_base_interactions"] = UNKNOWN_BASE
    units = outcome.details.get("units") if outcome else None
    if update is None:
        update = update_part(outcome) if outcome else {}
    if outcome is None:
        missing |= dict.fromkeys(("circuit", "groups", "update"), "only stored models were compared")
    else:
        parts = {
            "circuit": outcome.circuit,
            "groups": outcome.groups,
            "update": update or None,
        }
        missing |= {name: f"the method {method} has none" for name, part in parts.items() if part is None}
    stages = outcome.details.get("stages", {}) if outcome else {}
    of_all = {"users": len(data.user_ids), "items": len(data.items), "interactions": len(data)}
    return {
        "schema": SCHEMA,
        "method": method,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seed": seed,
        "dataset": {
            "name": data.name,
            "source": data.source,
            "fingerprint": data.fingerprint,
            "n_users": len(data.user_ids),
            "n_items": len(data.items),
            "n_ratings": len(data),
        },
        "model": {
            "base": opened.recommender.base["name"],
            "base_hash": opened.recommender.base["sha256"],
            "kind": opened.recipe.model.kind,
            "n_parameters": n_parameters,
            "n_trainable": outcome.n_trainable if outcome else None,
            "n_changed": _changed(model, outcome.model) if outcome else None,
            "template": opened.recommender.template,
            "note": opened.recommender.base.get("note"),
            "output": output,
        },
        "request": {
            "kind": request.kind,
            "n_ids": len(request.ids),
            "share": len(request.ids) / of_all[request.kind],
            "choice": choice,
            "n_interactions": int(split.deleted.sum()),
            "n_examples": len(split.forget),
            "n_base_users": base.n_users if base is not None else None,
            "n_base_interactions": base.n_interactions if base is not None else None,
            "note": base.text if base else None,
            "digest": request.digest,
        },
        "split": {
            "kind": opened.split.kind,
            "train": len(opened.split.train),
            **{p: len(getattr(split, p)) for p in ("forget", "retain", "control", "valid", "test")},
        },
        "metrics": measured.metrics,
        "floor_jsd": measured.floor_jsd,
        "ceiling_jsd": measured.ceiling_jsd,
        "residual": measured.residual,
        "circuit": circuit_part(outcome.circuit, reads=_reads(opened, outcome), seed=seed) if outcome else {},
        "groups": groups_part(outcome.groups, units.places, units.granularity) if outcome and units else {},
        "update": update,
        "cost": {
            "stages": [{"name": k, "time_s": v} for k, v in stages.items()],
            "kept": outcome.details.get("kept", []) if outcome else [],
            "peak_mem_bytes": max(peak_memory_bytes(), measured.metrics[method].get("peak_mem_bytes") or 0),
        },
        "verdict": verdict_part or {},
        "versions": versions(),
        "machine": machine(),
        "config": config.model_dump(mode="json"),
        "config_hash": config.digest,
        "missing": missing,
    }


def _reads(opened: Opened, outcome: Outcome) -> list[dict[str, Any]]:
    """What the heads of the circuit read on a sample of validation prompts; none without a circuit."""
    if outcome.circuit is None:
        return []
    made, circuit = opened.recommender, outcome.circuit
    encoder = Encoder(made.tokenizer, made.template, opened.data.titles["title"].to_pylist())
    few = opened.split.valid.take(np.arange(min(READ_PROMPTS, len(opened.split.valid))))
    sample = encoder.encode(queries(opened.data, few))
    core = {circuit.modules[k] for k in circuit.core}
    try:
        claims = attention_reading(made.model, sample, made.answers).claims()
    except ModelError:  # no attention weights: the record does without
        return []
    return [{k: v for k, v in c.items() if k != "by_part"} for c in claims if c["head"] in core]


def _changed(before: Any, after: Any) -> int:
    """Parameters whose value differs; one of another shape (an adapter of another rank) differs whole."""
    old = dict(before.named_parameters())
    return sum(_differing(p.detach(), old.get(n)) for n, p in after.named_parameters() if p is not old.get(n))


def _differing(new: Any, old: Any) -> int:
    if old is None or old.shape != new.shape:
        return int(new.numel())
    count = (new != old.detach()).sum()
    return int(count.full_tensor() if hasattr(count, "full_tensor") else count)  # of all processes' parts
