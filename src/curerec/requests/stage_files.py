"""Circuit and groups as the plain values that a stage leaves in its file, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from curerec.records import Circuit, Groups


def stored_circuit(circuit: Circuit) -> dict[str, Any]:
    """What :func:`read_circuit` reads; JSON has no nan, so there is None where a value is none."""
    return {
        "modules": circuit.modules,
        "scores": circuit.scores,
        "exact": [None if np.isnan(x) else float(x) for x in circuit.exact],
        "core": circuit.core,
        "curve": circuit.curve,
        "faithfulness": circuit.faithfulness,
        "completeness": circuit.completeness,
        "jaccard": circuit.jaccard,
        "jaccard_chance": circuit.jaccard_chance if np.isfinite(circuit.jaccard_chance) else None,
        "scorer": circuit.scorer,
        "pairs": circuit.pairs,
    }


def read_circuit(stored: dict[str, Any]) -> Circuit:
    """The circuit of :func:`stored_circuit`."""
    exact = [np.nan if x is None else x for x in stored["exact"]]
    return Circuit(
        modules=tuple(stored["modules"]),
        scores=np.asarray(stored["scores"], np.float32),
        exact=np.asarray(exact, np.float32),
        core=tuple(stored["core"]),
        curve=tuple((int(size), float(f)) for size, f in stored["curve"]),
        faithfulness=stored["faithfulness"],
        completeness=stored["completeness"],
        jaccard=stored["jaccard"],
        jaccard_chance=np.nan if (chance := stored.get("jaccard_chance")) is None else chance,
        scorer=stored["scorer"],
        pairs=stored["pairs"],
    )


def stored_groups(groups: Groups) -> dict[str, Any]:
    """What :func:`read_groups` reads."""
    return {
        "modules": groups.modules,
        "role": groups.role,
        "forget_score": groups.forget_score,
        "retain_score": groups.retain_score,
        "agreement": groups.agreement,
    }


def read_groups(stored: dict[str, Any]) -> Groups:
    """The groups of :func:`stored_groups`."""
    scores = (np.asarray(stored[k], np.float64) for k in ("forget_score", "retain_score", "agreement"))
    return Groups(tuple(stored["modules"]), np.asarray(stored["role"], dtype=object), *scores)
