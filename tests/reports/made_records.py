"""Plausible records, made up: the demo's with two retrains, and a production run's with none."""

from __future__ import annotations

import random
from typing import Any

HEADS, WIDTH = 4, 64
PROJECTIONS = {
    "q_proj": 64,
    "k_proj": 64,
    "v_proj": 64,
    "o_proj": 64,
    "gate_proj": 172,
    "up_proj": 172,
    "down_proj": 64,
}
NEEDS_RETRAIN = "needs a model retrained without the data; a production run makes none"


def full_record() -> dict[str, Any]:
    """A run of the demo: two retrains, uniform NPO, random groups, CURE."""
    rng = random.Random(0)
    cells = _cells(rng)
    metrics = {
        "original": _metrics(0.7231, 0.6630, 0.6041, 0.0312, 0.0226, 0.600, None, n_trainable=175424),
        "retrain": _metrics(0.7216, 0.6614, 0.6059, 0.0287, 0.0, 0.502, 41.3, n_trainable=175424),
        "retrain_2": _metrics(0.7209, 0.6601, 0.6066, 0.0301, 0.0085, 0.513, 40.8, n_trainable=175424),
        "npo": _metrics(0.7148, 0.6540, 0.6122, 0.0420, 0.0208, 0.521, 7.4, core=4.9, n_trainable=175424),
        "random_modules": _metrics(
            0.7189, 0.6588, 0.6075, 0.0334, 0.0151, 0.554, 7.9, core=4.2, n_trainable=88000
        ),
        "cure": _metrics(0.7207, 0.6609, 0.6063, 0.0305, 0.0128, 0.517, 5.93, core=3.11, n_trainable=92160),
    }
    for name in ("original", "retrain", "retrain_2"):
        metrics[name]["residual"] = None
    metrics["npo"]["stop_reason"] = "the utility guard: what the steps began with is kept"
    scores = _scores(rng)
    core = [s["module"] for s in scores if s["in_core"]]
    return {
        "schema": "curerec-record/2",
        "method": "cure",
        "created": "2026-11-23T10:00:00Z",
        "seed": 0,
        "dataset": {
            "name": "ml-100k",
            "source": "wheel recbole 1.2.1",
            "fingerprint": "9f2c" * 16,
            "n_users": 943,
            "n_items": 1682,
            "n_ratings": 100000,
        },
        "model": {
            "base": "nano-llama",
            "base_hash": "1b7d" * 16,
            "kind": "full",
            "n_parameters": 283712,
            "n_trainable": 175424,
            "n_changed": 92160,
            "template": "likes",
            "note": None,
            "output": "77ae" * 16,
        },
        "request": {
            "kind": "users",
            "n_ids": 57,
            "share": 0.1,
            "choice": "random",
            "n_interactions": 5012,
            "n_examples": 700,
            "digest": "3f2a9c1e" * 8,
        },
        "split": {
            "kind": "per-user",
            "train": 7000,
            "forget": 700,
            "retain": 6300,
            "control": 800,
            "valid": 2000,
            "test": 4000,
        },
        "metrics": metrics,
        "floor_jsd": 0.0085,
        "ceiling_jsd": 0.0226,
        "residual": {"npo": 0.87, "random_modules": 0.47, "cure": 0.305},
        "circuit": {
            "faithfulness": 0.93,
            "completeness": 0.88,
            "size": len(core),
            "n_modules": len(scores),
            "modules": core,
            "scorer": "atp",
            "jaccard": 0.86,
            "pairs": {"kept": 412, "moved": 398, "flipped": 61, "unaligned": 88},
            "curve": [
                list(p) for p in enumerate((0, 0.41, 0.58, 0.72, 0.81, 0.87, 0.93, 0.96, 0.98, 1.01, 1))
            ],
            "scores": scores,
            "spearman_exact": 0.94,
        },
        "groups": {
            "granularity": "row",
            **_named(cells),
            "agreement": 0.93,
            "cells": cells,
        },
        "update": {
            "forget_loss": "npo",
            "retain_loss": "kl",
            "optimizer": "adamw",
            "steps": 60,
            "stop_reason": "membership gap closed within its sampling error",
            "trace": [_step(rng, 5 * i, i / 12) for i in range(1, 13)],
        },
        "cost": {
            "stages": [
                {"name": "graph", "time_s": 0.31},
                {"name": "counterfactuals", "time_s": 0.62},
                {"name": "circuit", "time_s": 1.18},
                {"name": "groups", "time_s": 0.64},
                {"name": "update", "time_s": 3.11},
                {"name": "commit", "time_s": 0.07},
            ],
            "peak_mem_bytes": 1_120_000_000,
        },
        "verdict": {"verified": True, "checks": _checks()},
        "versions": {"curerec": "0.1.0", "torch": "2.9.0", "transformers": "5.1.0"},
        "machine": {"device": "cpu", "cores": 2},
        "config": {
            "method": {"name": "cure", "tau": 0.5, "beta": 0.5},
            "model": {"epochs": 5, "rate": 4.5e-4},
        },
        "config_hash": "c0de" * 16,
        "missing": {"metrics.original.t_core_s": "the original was loaded, not trained, in this run"},
    }


def production_record() -> dict[str, Any]:
    """A LoRA run without any retrain: what a real deployment stores."""
    record = full_record()
    record["metrics"] = {n: record["metrics"][n] for n in ("original", "cure")}
    for model in record["metrics"].values():
        model.update(jsd=None, jeffreys_half=None, l2=None, jsd_test=None, residual=None)
        model.update(membership_gap=None, retrain_ratio=None)
    record["model"].update(
        base="smollm2-135m", kind="lora", note="dequantised from a 4-bit GGUF", n_parameters=134515008
    )
    record["model"].update(n_trainable=4884480, n_changed=2103936)
    record.update(floor_jsd=None, ceiling_jsd=None, residual={"cure": None})
    record["verdict"] = {"verified": None, "checks": _checks_alone()}
    record["groups"]["granularity"] = "rank"
    cells = _deep_cells(random.Random(1), layers=30, heads=9)
    record["groups"].update(cells=cells, **_named(cells, "rank"))
    record["circuit"] = _deep_circuit(random.Random(2), layers=30, heads=9)
    record["missing"] = {
        path: NEEDS_RETRAIN
        for path in ("metrics.retrain", "floor_jsd", "ceiling_jsd", "residual", "metrics.cure.membership_gap")
    }
    return record


def _metrics(
    auc: float,
    acc: float,
    loss: float,
    ece: float,
    jsd: float,
    member: float,
    total: float | None,
    *,
    core: float | None = None,
    n_trainable: int,
) -> dict[str, Any]:
    return {
        "test_auc": auc,
        "test_acc": acc,
        "test_log_loss": loss,
        "test_ece": ece,
        "valid_auc": auc + 0.004,
        "jsd": jsd,
        "jeffreys_half": 4 * jsd,
        "l2": jsd**0.5,
        "jsd_test": 0.7 * jsd,
        "residual": (jsd - 0.0085) / (0.0226 - 0.0085),
        "membership_auc": member,
        "membership_low": member - 0.031,
        "membership_high": member + 0.031,
        "membership_tpr_at_fpr_01": 0.014,
        "membership_gap": member - 0.502,
        "t_core_s": core if core is not None else total,
        "t_total_s": total,
        "retrain_ratio": None if total is None else total / 41.3,
        "n_trainable": n_trainable,
        "probe_change": 0.0312,
    }


def _checks() -> list[dict[str, Any]]:
    return [
        {
            "name": "something_changed",
            "passed": True,
            "value": 32,
            "limit": 1,
            "text": "Predictions on 32 probe prompts differ from the original's.",
        },
        {
            "name": "membership",
            "passed": True,
            "value": 0.015,
            "limit": 0.03,
            "text": "The deleted data cannot be told from unseen data better than with a retrained model.",
        },
        {
            "name": "residual",
            "passed": True,
            "value": 0.305,
            "limit": 0.4,
            "text": "Answers about the deleted data are close to a retrained model's.",
        },
        {
            "name": "utility",
            "passed": True,
            "value": 0.0009,
            "limit": 0.005,
            "text": "Recommendations are as good as a retrained model's.",
        },
    ]


def _checks_alone() -> list[dict[str, Any]]:
    return [
        {
            "name": "something_changed",
            "passed": True,
            "value": 32,
            "limit": 1,
            "text": "Predictions changed.",
        },
        {
            "name": "membership",
            "passed": True,
            "value": 0.517,
            "limit": 0.531,
            "text": "Deleted data cannot be told from unseen data.",
        },
        {"name": "residual", "passed": None, "value": None, "limit": 0.4, "text": "Needs a retrained model."},
    ]


def _split(rng: random.Random, n: int) -> dict[str, int]:
    weights = [rng.random() ** 2 + 0.05 for _ in range(4)]
    marks = [int(n * w / sum(weights)) for w in weights[:3]]
    return dict(zip(("forget", "retain", "shared", "frozen"), [*marks, n - sum(marks)], strict=True))


def _cells(rng: random.Random) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = [
        {"layer": None, "module": "embed_tokens", "head": None, **_split(rng, 1683)}
    ]
    for layer in range(2):
        for module, rows in PROJECTIONS.items():
            if module in {"q_proj", "k_proj", "v_proj"}:
                for head in range(HEADS):
                    cells.append(
                        {"layer": layer, "module": module, "head": head, **_split(rng, rows // HEADS)}
                    )
            else:
                cells.append({"layer": layer, "module": module, "head": None, **_split(rng, rows)})
    cells.append(
        {"layer": None, "module": "norm", "head": None, "forget": 0, "retain": 0, "shared": 0, "frozen": 1}
    )
    return cells


def _deep_cells(rng: random.Random, *, layers: int, heads: int) -> list[dict[str, Any]]:
    cells = []
    for layer in range(layers):
        for module in PROJECTIONS:
            for head in range(heads) if module == "q_proj" else [None]:
                cells.append({"layer": layer, "module": module, "head": head, **_split(rng, 16)})
    return cells


def _deep_circuit(rng: random.Random, *, layers: int, heads: int) -> dict[str, Any]:
    names = [f"layers.{n}.head.{h}" for n in range(layers) for h in range(heads)]
    names += [f"layers.{n}.mlp" for n in range(layers)]
    core = set(rng.sample(names, 41))
    scores = []
    for name in names:
        score = rng.gauss(0, 0.05) + (0.2 if name in core else 0.0)
        scores.append(
            {
                "module": name,
                "score": score,
                "low": score - 0.02,
                "high": score + 0.02,
                "exact": None,
                "in_core": name in core,
            }
        )
    return {
        "faithfulness": 0.903,
        "completeness": 0.71,
        "size": len(core),
        "n_modules": len(names),
        "modules": sorted(core),
        "scorer": "atp",
        "jaccard": 0.61,
        "pairs": {"kept": 260, "moved": 240, "flipped": 12, "unaligned": 301},
        "curve": [[k, min(1.02, 1 - 0.97**k * (1 - k / 330))] for k in (0, 5, 10, 20, 41, 80, 160, 240, 300)],
        "scores": scores,
        "spearman_exact": None,
    }


def _scores(rng: random.Random) -> list[dict[str, Any]]:
    names = [f"layers.{n}.head.{h}" for n in range(2) for h in range(HEADS)] + [
        "layers.0.mlp",
        "layers.1.mlp",
    ]
    means = [-0.02, 0.01, -0.31, -0.12, -0.42, 0.03, -0.18, -0.05, -0.55, -0.26]
    return [
        {
            "module": name,
            "score": mean,
            "low": mean - 0.03 - rng.random() * 0.04,
            "high": mean + 0.03 + rng.random() * 0.04,
            "exact": mean * 0.95,
            "in_core": abs(mean) > 0.1,
        }
        for name, mean in zip(names, means, strict=True)
    ]


def _named(cells: list[dict[str, Any]], unit: str = "row") -> dict[str, list[str]]:
    """Unit names that fit the counts of the cells."""
    named: dict[str, list[str]] = {"forget": [], "retain": [], "shared": [], "frozen": []}
    rows: dict[tuple[Any, str], int] = {}
    for cell in cells:
        stem = cell["module"] if cell["layer"] is None else f"layers.{cell['layer']}.{cell['module']}"
        for role, units in named.items():
            at = rows.get((cell["layer"], cell["module"]), 0)
            units += [f"{stem}.{unit}.{i}" for i in range(at, at + cell[role])]
            rows[cell["layer"], cell["module"]] = at + cell[role]
    return named


def _step(rng: random.Random, step: int, share: float) -> dict[str, Any]:
    return {
        "step": step,
        "membership_auc": 0.6 - 0.085 * share**0.6 + rng.gauss(0, 0.004),
        "valid_auc": 0.7262 - 0.0021 * share + rng.gauss(0, 0.0007),
        "forget_loss": 0.69 - 0.22 * share,
        "retain_loss": 0.004 + 0.006 * share,
        "cos_mean": -0.32 + 0.45 * share + rng.gauss(0, 0.06),
        "projected": max(0.0, 0.8 - 0.7 * share),
    }
