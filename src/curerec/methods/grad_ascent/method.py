"""Gradient ascent with KL retain loss (``ga_kl``)."""

from __future__ import annotations

from curerec.methods.npo.method import npo_uniform
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig
from curerec.records import Outcome


def ga_kl(task: Task, config: UnlearnConfig | None = None) -> Outcome:
    """``-L_f + w KL(theta_o || theta)`` on every parameter, with the shared stopping rule.

    Source: PROTOCOL section 4, row ``ga_kl``.
    """
    config = (config or UnlearnConfig()).model_copy(update={"forget_loss": "grad_ascent"})
    return npo_uniform(task, config, name="ga_kl")
