"""SCRUB: epochs that leave the original on D_f, and epochs that follow it on D_r."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field

from curerec.methods.batches import Batches
from curerec.methods.descent import Descent, Log, of_loss
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.losses import kl_to
from curerec.methods.task import Task
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [1e-4, 5e-4, 1e-3], "max_epochs": [1, 3]}


class ScrubConfig(LoopConfig):
    """The loop and its phases."""

    lr: float = Field(5e-4, gt=0)
    temperature: float = Field(2.0, gt=0, description="T of the distillation")
    weight: float = Field(0.5, ge=0, description="of the KL on D_r; the cross-entropy has 1")
    epochs: int = Field(5, gt=0)
    max_epochs: int = Field(
        3, ge=0, description="so many of the first epochs begin by leaving theta_o on D_f"
    )
    retain_share: float = Field(1.0, gt=0, le=1, description="of D_r that an epoch passes over")
    max_steps: int = Field(100_000, gt=0)


def distill(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T^2 KL(softmax(target / T) || softmax(logits / T))``, mean, nats.

    Source: Hinton et al. 2015, arXiv 1503.02531; T^2 keeps gradients of the scale they have at T = 1.
    """
    return temperature**2 * kl_to(logits / temperature, target / temperature)


def phases(n_forget: int, n_retain: int, epochs: int, max_epochs: int) -> list[str]:
    """What each step does: ``max`` (leave theta_o on D_f) or ``min`` (follow it on D_r).

    Args:
        n_forget, n_retain: steps an epoch of each kind.
        epochs: of ``min``.
        max_epochs: so many of the first are preceded by an epoch of ``max``.
    """
    out: list[str] = []
    for epoch in range(epochs):
        out += ["max"] * (n_forget if epoch < max_epochs else 0) + ["min"] * n_retain
    return out


def scrub(task: Task, config: ScrubConfig | None = None) -> Outcome:
    """Alternate ascending KL(theta_o || theta) on D_f and descending ``L_r + 0.5 KL`` on D_r.

    Args:
        task: the request.
        config: see :class:`ScrubConfig`.

    Source: Kurmanji et al. 2023, arXiv 2302.09880, eq. 3 and algorithm 1.
    """
    config = config or ScrubConfig()
    n_forget = Batches(task, task.forget, config.batch_size, 0).per_epoch
    n_retain = Batches(task, task.retain, config.batch_size, 0).per_epoch
    n_retain = max(1, math.ceil(config.retain_share * n_retain))
    plan = phases(n_forget, n_retain, config.epochs, config.max_epochs)[: config.max_steps]

    def loss(descent: Descent, step: int) -> tuple[torch.Tensor, Log]:
        if plan[step] == "max" and not descent.resting:
            batch = descent.forget.next()
            away = distill(descent.logits(batch), descent.original(batch), config.temperature)
            return -away, {"forget_kl": away.detach()}
        batch = descent.retain.next()
        logits = descent.logits(batch)
        near = distill(logits, descent.held_to(batch), config.temperature)
        task_loss = torch.nn.functional.cross_entropy(logits, batch.label)
        noted = {"retain_kl": near.detach(), "retain_loss": task_loss.detach()}
        return task_loss + config.weight * near, noted

    # After an epoch of leaving, utility is down by design: only a finished epoch is judged.
    ends = {n_forget * min(e, config.max_epochs) + n_retain * e for e in range(1, config.epochs + 1)}
    done = descend(task, config, of_loss(loss), steps=len(plan), due=lambda step: step in ends)
    return outcome(task, "scrub", done)
