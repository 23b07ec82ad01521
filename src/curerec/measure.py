"""Measuring models side by side: the metrics of a record, and its verdict."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curerec.circuits.reading import attention_reading
from curerec.errors import ModelError
from curerec.evaluation.advantage import advantage
from curerec.evaluation.answers import answers
from curerec.evaluation.divergence import jeffreys_half, jsd, l2
from curerec.evaluation.guard import probes_changed
from curerec.evaluation.inputs import p_yes
from curerec.evaluation.membership import membership
from curerec.evaluation.residual import Reference
from curerec.evaluation.utility import nll, utility
from curerec.evaluation.verdict import Limits, verdict
from curerec.machine import machine, peak_memory_bytes, versions
from curerec.methods import METHODS
from curerec.models import logits_of
from curerec.pipeline import Opened
from curerec.prompts.encoding import Encoder, queries
from curerec.records import Examples, ForgetRequest, ForgetSplit, Outcome
from curerec.reports.build import circuit_part, groups_part, update_part
from curerec.reports.schema import SCHEMA
from curerec.splitting import base_share

PROBES = 32
READ_PROMPTS = 64  # validation prompts on which what the heads read is looked at
UNKNOWN_BASE = "what the base model was pre-trained on is not known here"
NO_SECOND = "no second model was retrained, and distances to it cannot be computed"
NO_RETRAIN = "no retrained model was given: in production none exists, and distances to it cannot be computed"


@dataclass
class Candidate:
    """A model to measure.

    Attributes:
        model: torch module.
        t_core_s, t_total_s: seconds its making took; None where unknown.
        n_trainable: parameters that could change.
        rebuild: gives examples the histories that a method of retrieval shows; None: as they are. Membership
            is always measured with the histories as they are: it asks what the weights remember.
        logits: by part, with rebuilt histories.
        memory: by part, with histories as they are.
    """

    model: Any
    t_core_s: float | None = None
    t_total_s: float | None = None
    n_trainable: int | None = None
    rebuild: Callable[[Examples], Examples] | None = None
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    memory: dict[str, np.ndarray] = field(default_factory=dict)


def candidate(outcome: Outcome) -> Candidate:
    """A method's outcome as something to measure."""
    rebuild = outcome.details.get("rebuild")
    return Candidate(outcome.model, outcome.t_core_s, outcome.t_total_s, outcome.n_trainable, rebuild)


def method_of(card: Mapping[str, Any]) -> str:
    """The method that made a recommender, from its card; ``given`` where that names none that is known.

    Args:
        card: of :func:`curerec.recommender.storage.read_card`.

    Example:
        >>> method_of({"unlearned": [{"method": "npo", "request": "3f2a"}]}), method_of({})
        ('npo', 'given')
    """
    done = card.get("unlearned") or []
    name = done[-1].get("method") if done else "retrain" if card.get("without") else None
    return name if name in METHODS else "given"


@dataclass
class Measured:
    """Metrics of all models, distances where there are retrains, and why some are missing."""

    metrics: dict[str, dict[str, Any]]
    floor_jsd: float | None
    ceiling_jsd: float | None
    rankable: bool | None
    residual: dict[str, float]
    missing: dict[str, str]
    membership: dict[str, dict[str, float]]


def measure(
    opened: Opened, split: ForgetSplit, models: dict[str, Candidate], retrains: dict[str, Candidate]
) -> Measured:
    """Score all models on D_f, D_c, D_v and D_t and compute every metric that can be computed.

    Args:
        opened: the original recommender with its data.
        split: the request applied.
        models: by name; must hold ``original``.
        retrains: by name (``retrain``, ``retrain_2``, ...); empty in production.

    Source: PROTOCOL sections 2 and 5.
    """
    everything = {**models, **retrains}
    parts = {"forget": split.forget, "control": split.control, "valid": split.valid, "test": split.test}
    for one in everything.values():
        for part, examples in parts.items():
            if part not in one.logits:
                shown = one.rebuild(examples) if one.rebuild else examples
                one.logits[part] = logits_of(opened.recommender, opened.data, shown, one.model)
            if part not in one.memory:
                plain = one.rebuild is None
                one.memory[part] = (
                    one.logits[part]
                    if plain
                    else logits_of(opened.recommender, opened.data, examples, one.model)
                )
    yes = {name: p_yes(one.logits["forget"]) for name, one in everything.items()}
    reference = None
    missing: dict[str, str] = {}
    if len(retrains) >= 2:
        reference = Reference(np.stack([yes[n] for n in retrains]), yes["original"])
    elif not retrains and "retrain" in models:  # the method is one: what is missing is another
        missing["metrics.retrain_2"] = NO_SECOND
    elif not retrains:
        missing["metrics.retrain"] = NO_RETRAIN
    user = opened.data.user_code
    groups = (user[split.forget.target], user[split.control.target])
    losses = {
        name: [nll(one.memory[p], parts[p].label) for p in ("forget", "control")]
        for name, one in everything.items()
    }
    attacks = {name: membership(*pair, groups=groups) for name, pair in losses.items()}
    attack_retrain = np.mean([attacks[n]["auc"] for n in retrains]) if retrains else None
    t_retrain = [one.t_total_s for one in retrains.values() if one.t_total_s]
    metrics: dict[str, dict[str, Any]] = {}
    residual: dict[str, float] = {}
    for name, one in everything.items():
        test = utility(one.logits["test"], split.test.label)
        row: dict[str, Any] = {f"test_{k}": test[k] for k in ("auc", "acc", "log_loss", "ece")}
        row["valid_auc"] = utility(one.logits["valid"], split.valid.label)["auc"]
        attack = attacks[name]
        row |= {
            "membership_auc": attack["auc"],
            "membership_low": attack["low"],
            "membership_high": attack["high"],
        }
        row["membership_tpr_at_fpr_01"] = attack["tpr_at_fpr_01"]
        row |= {"t_core_s": one.t_core_s, "t_total_s": one.t_total_s, "n_trainable": one.n_trainable}
        others = [n for n in retrains if n != name]
        if others:
            row["jsd"] = float(np.mean([jsd(yes[name], yes[n]) for n in others]))
            row["jeffreys_half"] = float(np.mean([jeffreys_half(yes[name], yes[n]) for n in others]))
            row["l2"] = float(np.mean([l2(yes[name], yes[n]) for n in others]))
            tests = [p_yes(everything[n].logits["test"]) for n in others]
            row["jsd_test"] = float(np.mean([jsd(p_yes(one.logits["test"]), t) for t in tests]))
        if attack_retrain is not None:
            row["membership_gap"] = float(attack["auc"] - attack_retrain)
        if t_retrain and one.t_total_s:
            row["retrain_ratio"] = one.t_total_s / float(np.mean(t_retrain))
        if reference is not None and name not in retrains:
            row["residual"] = float(reference.residual(row["jsd"]))
            if name != "original":
                residual[name] = row["residual"]
        metrics[name] = row
    return Measured(
        metrics,
        reference.floor if reference else None,
        reference.ceiling if reference else None,
        reference.rankable if reference else None,
        residual,
        missing,
        attacks,
    )


def judge(
    opened: Opened,
    split: ForgetSplit,
    original: Candidate,
    new: Candidate,
    base: Any,
    *,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """The verdict on an unlearned model, from D_f, D_c and D_v alone.

    Membership is judged against the base model, which was fine-tuned on neither D_f nor D_c: its own AUC and
    distance carry what tells the two sets apart by chance.

    Args:
        opened, split: the recommender and the request.
        original, new: with logits of :func:`measure`.
        base: the model before fine-tuning.
        limits: thresholds.

    Returns:
        ``verified`` (True, False or None) and ``checks``.
    """
    user = opened.data.user_code
    groups = (user[split.forget.target], user[split.control.target])
    parts = {"forget": split.forget, "control": split.control}
    plain = {p: logits_of(opened.recommender, opened.data, e, base) for p, e in parts.items()}

    def losses(logits: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [nll(logits[p], parts[p].label) for p in parts]

    now, was, before = losses(new.memory), losses(original.memory), losses(plain)
    attack = membership(*now, groups=groups)
    told, chance = advantage(*now, groups=groups), advantage(*before, groups=groups)
    kept = [utility(c.logits["valid"], split.valid.label) for c in (original, new)]
    said = answers(new.logits["forget"], split.forget.label, new.logits["control"], split.control.label)
    return verdict(
        probes_changed=probes_changed(original.logits["forget"][:PROBES], new.logits["forget"][:PROBES]),
        membership_auc=attack["auc"],
        membership_error=(attack["high"] - attack["low"]) / 2,
        membership_original=membership(*was, groups=groups)["auc"],
        membership_target=membership(*before, groups=groups)["auc"],
        advantage=told["value"],
        advantage_error=told["error"],
        advantage_target=chance["value"],
        auc_drop=kept[0]["auc"] - kept[1]["auc"],
        ece_rise=kept[1]["ece"] - kept[0]["ece"],
        answers_gap=said["gap"],
        answers_se=said["se"],
        answers_control=said["control"],
        limits=limits,
    )


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
) -> dict[str, Any]:
    """The record of a request as plain values, ready for :func:`curerec.reports.schema.write_record`.

    Args:
        outcome: of the method; None where only stored models were compared.
        method: its name, that of its row in ``measured.metrics``.
        config: the recipe in force.
        choice: how an experiment's request was drawn.
        verdict_part: from :func:`judge`.
        output: sha256 of the unlearned weights.
    """
    data, model = opened.data, opened.recommender.model
    n_parameters = sum(p.numel() for p in model.parameters())
    missing = dict(measured.missing)
    base = base_share(data, opened.recipe, split.deleted)
    if base is None:
        missing["request.n_base_users"] = missing["request.n_base_interactions"] = UNKNOWN_BASE
    units = outcome.details.get("units") if outcome else None
    if outcome is None:
        missing |= dict.fromkeys(("circuit", "groups", "update"), "only stored models were compared")
    else:
        parts = {
            "circuit": outcome.circuit,
            "groups": outcome.groups,
            "update": outcome.details.get("update"),
        }
        missing |= {name: f"the method {method} has none" for name, part in parts.items() if part is None}
    stages = outcome.details.get("stages", {}) if outcome else {}
    return {
        "schema": SCHEMA,
        "method": method,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seed": seed,
        "dataset": {
            "name": data.name,
            "source": data.source,
            "fingerprint": data.fingerprint,
            "n_users": len(data.users),
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
            "share": len(request.ids)
            / {"users": len(data.users), "items": len(data.items), "interactions": len(data)}[request.kind],
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
        "update": update_part(outcome) if outcome else {},
        "cost": {
            "stages": [{"name": k, "time_s": v} for k, v in stages.items()],
            "peak_mem_bytes": peak_memory_bytes(),
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
    return sum(_differing(p.detach(), old.get(n)) for n, p in after.named_parameters())


def _differing(new: Any, old: Any) -> int:
    same = old is not None and old.shape == new.shape
    return int((new != old.detach()).sum()) if same else new.numel()
