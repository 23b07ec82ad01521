"""Gradient ascent on D_f, alone (``grad_ascent``) and with a KL retain loss (``ga_kl``)."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from curerec.methods.descent import Descent, Log, of_loss
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.npo.method import npo_uniform
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [1e-5, 3e-5, 1e-4], "check_every": [1, 4]}
SEARCH_GA_KL: dict[str, list[Any]] = {"lr": [3e-4, 1e-3, 3e-3], "retain_weight": [None, 1.0, 3.0]}


class GradAscentConfig(LoopConfig):
    """The loop."""

    lr: float = Field(3e-5, gt=0)


def grad_ascent(task: Task, config: GradAscentConfig | None = None) -> Outcome:
    """Descend ``-L_f``, nothing else; only the stopping rule holds it.

    Args:
        task: the request.
        config: see :class:`GradAscentConfig`.

    Source: PROTOCOL section 4, row ``grad_ascent``; e.g. Jang et al. 2023, arXiv 2210.01504.
    """
    config = config or GradAscentConfig()

    def loss(descent: Descent, step: int) -> tuple[torch.Tensor, Log]:
        return -descent.loss(descent.forget.next()), {}

    return outcome(task, "grad_ascent", descend(task, config, of_loss(loss)))


def ga_kl(task: Task, config: UnlearnConfig | None = None) -> Outcome:
    """``-L_f + w KL(theta_o || theta)`` on every parameter, with the shared stopping rule.

    Source: PROTOCOL section 4, row ``ga_kl``.
    """
    config = (config or UnlearnConfig()).model_copy(update={"forget_loss": "grad_ascent"})
    return npo_uniform(task, config, name="ga_kl")
