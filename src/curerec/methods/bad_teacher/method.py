"""Bad teaching: follow an untuned model on D_f and the original on D_r."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from curerec.methods.descent import Descent, Log, frozen_logits, of_loss
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.losses import kl_to
from curerec.methods.task import Task
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [1e-4, 3e-4, 1e-3], "weight": [0.25, 0.5]}


class BadTeacherConfig(LoopConfig):
    """The loop and the share of the incompetent teacher."""

    lr: float = Field(3e-4, gt=0)
    weight: float = Field(0.5, gt=0, lt=1, description="of the incompetent teacher; the other has the rest")


def bad_teacher(task: Task, config: BadTeacherConfig | None = None) -> Outcome:
    """Descend ``weight KL(base || theta)`` on D_f plus ``(1 - weight) KL(theta_o || theta)`` on D_r.

    Args:
        task: the request.
        config: see :class:`BadTeacherConfig`.

    Source: Chundawat et al. 2023, arXiv 2205.08096, eq. 3; the incompetent teacher is the model before
    fine-tuning instead of a random one.
    """
    config = config or BadTeacherConfig()
    with task.clock.stage("prepare", told=False):
        base = task.base_model()

    def loss(descent: Descent, step: int) -> tuple[torch.Tensor, Log]:
        other = descent.retain.next()
        retain = kl_to(descent.logits(other), descent.held_to(other))
        if descent.resting:
            return (1 - config.weight) * retain, {"retain_loss": retain.detach()}
        batch = descent.forget.next()
        forget = kl_to(descent.logits(batch), frozen_logits(base, batch, task.answers))
        noted = {"forget_loss": forget.detach(), "retain_loss": retain.detach()}
        return config.weight * forget + (1 - config.weight) * retain, noted

    return outcome(task, "bad_teacher", descend(task, config, of_loss(loss)))
