"""NPO + KL on all fine-tuned parameters alike."""

from __future__ import annotations

from typing import Any

from curerec.methods.loop import outcome
from curerec.methods.rules import Rules, uniform
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig, retain_weight, run
from curerec.recommender.score import device_of
from curerec.recommender.units import units_of
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [3e-4, 1e-3, 3e-3], "beta": [0.1, 0.5]}


def npo_uniform(task: Task, config: UnlearnConfig | None = None, *, name: str = "npo") -> Outcome:
    """The weighted sum ``L_npo + w KL(theta_o || theta)`` on every parameter: what CURE is compared with.

    Args:
        task: the request.
        config: of the loop; the stopping rule is the same as CURE's.

    Source: Zhang et al. 2024, arXiv 2404.05868.
    """
    config = config or UnlearnConfig()
    units = units_of(task.original.model, "projection")
    done = run(
        task,
        Rules(units, uniform(units, device_of(task.original.model)), weight=retain_weight(task, config)),
        config,
    )
    return outcome(task, name, done)
