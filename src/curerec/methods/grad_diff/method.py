"""Gradient difference: descend on D_r, ascend on D_f."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from curerec.methods.descent import Descent, Log, of_loss
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.task import Task
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [5e-5, 2e-4, 1e-3], "weight": [0.1, 0.2, 0.5]}


class GradDiffConfig(LoopConfig):
    """The loop and the weight of the ascent."""

    lr: float = Field(5e-5, gt=0)
    weight: float = Field(0.2, gt=0, description="a of L_r - a L_f")


def grad_diff(task: Task, config: GradDiffConfig | None = None) -> Outcome:
    """Descend ``L_r - a L_f`` (E2URec's "NegGrad").

    Args:
        task: the request.
        config: see :class:`GradDiffConfig`.

    Source: Liu et al. 2022, arXiv 2203.12817 (gradient difference); a and rate of E2URec's scripts.
    """
    config = config or GradDiffConfig()

    def loss(descent: Descent, step: int) -> tuple[torch.Tensor, Log]:
        if descent.resting:
            return descent.retaining()
        forget, retain = descent.loss(descent.forget.next()), descent.loss(descent.retain.next())
        noted = {"forget_loss": forget.detach(), "retain_loss": retain.detach()}
        return retain - config.weight * forget, noted

    return outcome(task, "grad_diff", descend(task, config, of_loss(loss)))
