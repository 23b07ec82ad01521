"""Circuit and groups back from the plain values that a stage left in its file."""

from __future__ import annotations

from typing import Any

import numpy as np

from curerec.records import Circuit, Groups


def read_circuit(stored: dict[str, Any]) -> Circuit:
    """The circuit of :meth:`curerec.requests.engine.CureEngine.circuit`."""
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


def read_groups(stored: dict[str, Any]) -> Groups:
    """The groups of :meth:`curerec.requests.engine.CureEngine.groups`."""
    scores = (np.asarray(stored[k], np.float64) for k in ("forget_score", "retain_score", "agreement"))
    return Groups(tuple(stored["modules"]), np.asarray(stored["role"], dtype=object), *scores)
