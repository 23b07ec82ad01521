"""What attacks found of a model that many are measured against, as arrays for another process to take up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from curerec.evaluation.candidate import Candidate

Arrays = dict[str, np.ndarray]


def found(one: Candidate) -> Arrays:
    """What was computed of a model and takes long: steps of relearning, drops by layer, rounded answers.

    Args:
        one: original or retrain, with what metrics left in its memo.

    Returns:
        ``goals`` [draws] and ``steps`` [draws, 2] (steps, whether censored), NaN where a draw has no gap;
        ``depth`` [layers, n]; ``int8/PART``, ``nf4/PART`` answer logits, [n, 2].
    """
    out: Arrays = {}
    for key, made in one.memo.items():
        if key[0] == "relearn":
            out["goals"] = np.array([np.nan if level is None else level for level in key[2]])
            out["steps"] = np.array([(np.nan, np.nan) if s is None else s for s in made], dtype=float)
        elif key[0] == "depth":
            out["depth"] = made
        elif key[0] == "quantised":
            out |= {f"{key[1]}/{part}": logits for part, logits in made.logits.items()}
    return out


def take_up(one: Candidate, original: Candidate, arrays: Mapping[str, np.ndarray], *, seed: int) -> None:
    """Lay into a model's memo what :func:`found` gave of it elsewhere.

    Args:
        one: the same model, of the same request and the same examples.
        original: whose states its own are patched into.
        arrays: of :func:`found`, with all parts that the metrics to come ask for.
        seed: of the ground.
    """
    rounded: dict[str, Arrays] = {}
    for name, array in arrays.items():
        form, _, part = name.partition("/")
        if part:
            rounded.setdefault(form, {})[part] = array
    made: dict[Any, Any] = {("quantised", form): Candidate(None, logits=z) for form, z in rounded.items()}
    if "depth" in arrays:
        made["depth", id(original)] = arrays["depth"]
    if "goals" in arrays:
        goals = tuple(None if np.isnan(level) else float(level) for level in arrays["goals"])
        steps = [None if np.isnan(s) else (float(s), bool(c)) for s, c in arrays["steps"]]
        made["relearn", seed, goals] = steps
    one.memo.update({key: value for key, value in made.items() if key not in one.memo})
