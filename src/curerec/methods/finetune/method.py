"""Continue the fine-tuning on D_r."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field

from curerec.methods.descent import Descent, Log, of_loss
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.task import Task
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [1e-4, 3e-4, 1e-3], "batch_size": [32, 128]}


class FinetuneConfig(LoopConfig):
    """The loop; ``epochs`` ends it."""

    lr: float = Field(3e-4, gt=0)
    epochs: float = Field(1.0, gt=0, description="passes over D_r")
    max_steps: int = Field(100_000, gt=0)


def finetune(task: Task, config: FinetuneConfig | None = None) -> Outcome:
    """Descend the cross-entropy on D_r and let the rest fade.

    Args:
        task: the request.
        config: see :class:`FinetuneConfig`.

    Source: PROTOCOL section 4, row ``finetune``.
    """
    config = config or FinetuneConfig()
    steps = max(1, math.ceil(config.epochs * len(task.retain) / config.batch_size))

    def loss(descent: Descent, step: int) -> tuple[torch.Tensor, Log]:
        return descent.loss(descent.retain.next()), {}

    done = descend(task, config, of_loss(loss), steps=min(steps, config.max_steps))
    return outcome(task, "finetune", done)
