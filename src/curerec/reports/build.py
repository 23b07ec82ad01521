"""The parts of a record that describe circuit, groups and update, from what the stages hand over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from curerec.records import ROLES, Circuit, Conflicts, Groups, Outcome


def circuit_part(
    circuit: Circuit | None, *, reads: list[dict[str, Any]] | None = None, draws: int = 200, seed: int = 0
) -> dict[str, Any]:
    """The circuit with a bootstrap interval for every module's mean score.

    Args:
        circuit: None where the method has none.
        reads: what its heads read, where that was measured.
        draws: resamples of the pairs.
        seed: of the resamples.
    """
    if circuit is None:
        return {}
    n = len(circuit.scores)
    weights = np.random.default_rng([seed, 7]).multinomial(n, np.full(n, 1 / n), size=draws) / n
    low, high = np.percentile(weights @ circuit.scores, [2.5, 97.5], axis=0)
    mean, core = circuit.scores.mean(0), set(circuit.core)
    known = np.isfinite(circuit.exact)
    # Exact scores are of the pairs that rank: where the agreement there was taken, that is what decided.
    agreement = circuit.agreement.get("spearman")
    if agreement is None:
        agreement = spearmanr(mean[known], circuit.exact[known])[0] if known.sum() > 2 else float("nan")
    return {
        "faithfulness": circuit.faithfulness,
        "completeness": circuit.completeness,
        "size": len(circuit.core),
        "n_modules": len(circuit.modules),
        "n_fixed": circuit.fixed,
        "modules": [circuit.modules[k] for k in circuit.core],
        "scorer": circuit.scorer,
        "jaccard": circuit.jaccard,
        "jaccard_chance": circuit.jaccard_chance if np.isfinite(circuit.jaccard_chance) else None,
        "pairs": circuit.pairs,
        "curve": [list(point) for point in circuit.curve],
        "scores": [
            {
                "module": name,
                "score": float(mean[k]),
                "low": float(low[k]),
                "high": float(high[k]),
                "exact": float(circuit.exact[k]) if known[k] else None,
                "in_core": k in core,
            }
            for k, name in enumerate(circuit.modules)
        ],
        "spearman_exact": float(agreement),
        "reads": reads,
    }


#: Modules whose rows are words. Those of them that can forget are in deleted prompts, so naming them would
#: tell what the deleted people rated.
WORDS = ("embed_tokens", "lm_head")


def groups_part(groups: Groups | None, places: Iterable[Any], granularity: str) -> dict[str, Any]:
    """Members of each group, and the counts that the module map draws.

    Rows of words are counted and not named (:data:`WORDS`).

    Args:
        groups: None where the method has none.
        places: of the units, each with ``layer``, ``module`` and ``head``.
        granularity: of the units.
    """
    if groups is None:
        return {}
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    named: dict[str, list[str]] = {role: [] for role in ROLES}
    for name, place, role in zip(groups.modules, places, groups.role, strict=True):
        if granularity != "row" or place.module not in WORDS:
            named[role].append(name)
        key = (place.layer, place.module, place.head)
        cell = cells.setdefault(
            key, {"layer": place.layer, "module": place.module, "head": place.head, **dict.fromkeys(ROLES, 0)}
        )
        cell[role] += 1
    return {
        "granularity": granularity,
        **named,
        "agreement": float(groups.agreement.mean()),
        "cells": list(cells.values()),
    }


def update_part(outcome: Outcome) -> dict[str, Any]:
    """How the weights were moved: losses, optimiser, trace, and why it stopped; empty for a retrain."""
    config = outcome.details.get("update")
    if config is None:
        return {}
    return {
        "forget_loss": getattr(config, "forget_loss", None),  # other baselines say theirs in their cards
        "retain_loss": _retain_loss(config),
        "optimizer": _optimizer(config),
        "depth": outcome.details.get("depth"),
        "rolled_back": outcome.details.get("rolled_back", {}).get("share"),
        "written": outcome.details.get("written", {}).get("part"),
        "saliency": outcome.details.get("saliency", {}).get("share"),
        "anchor": getattr(config, "anchor", None),
        "target": outcome.details.get("target"),
        "unseen_tokens": outcome.details.get("unseen_tokens"),
        "steps": outcome.details.get("steps"),
        "stop_reason": outcome.stop_reason,
        "trace": _trace(outcome.trace),
        "conflicts": _conflicts(outcome.details.get("conflicts")),
        "second_arm": _second_arm(outcome.details.get("second_arm")),
    }


def _trace(trace: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    return [{**point, "step": int(point["step"])} for point in trace]


def _second_arm(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The update whose weights' mean with the first one's was handed back; None where there was one alone."""
    if found is None:
        return None
    return {
        "share": found["share"],
        "optimizer": _optimizer(found["update"]),
        "steps": found["steps"],
        "stop_reason": found["stop_reason"],
        "trace": _trace(found["trace"]),
        "conflicts": _conflicts(found["conflicts"]),
    }


def _conflicts(found: Conflicts | None) -> dict[str, Any] | None:
    """Each step over all modules, and each module over all steps; the whole is in the outcome's details.

    Means over modules and over steps; lengths are roots of sums of squares.
    """
    if found is None:
        return None

    def mean(values: np.ndarray) -> float:
        finite = values[np.isfinite(values)]
        return float(finite.mean()) if len(finite) else float("nan")

    def seen(at: Any) -> dict[str, float]:
        cos, projected, update = found.cos[at], found.projected[at], found.update[at]
        return {
            "cos_mean": mean(cos),
            "projected": mean(projected),
            "update": float(np.linalg.norm(update)),
        }

    return {
        "steps": [{"step": k + 1, **seen(k)} for k in range(len(found.update))],
        "modules": [{"module": name, **seen((slice(None), m))} for m, name in enumerate(found.modules)],
    }


def _optimizer(config: Any) -> str:
    """Name, and whether conflict was asked of its steps instead of the gradients."""
    name: str = config.optimizer
    of_steps = getattr(config, "projection", None) and name == "adamw"
    return f"{name}, projection of its steps" if of_steps else name


def _retain_loss(config: Any) -> str | None:
    """Of an update with two losses; None where the method's card says it."""
    if not hasattr(config, "forget_loss"):
        return None
    labels = getattr(config, "retain_labels", 0)
    return f"kl + {labels:g} cross-entropy" if labels else "kl"
