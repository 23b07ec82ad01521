"""Fine-tuning on D_r and on D_f with its answers flipped."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field

from curerec.methods.descent import Descent, Log, of_loss
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.task import Task
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [5e-5, 2e-4, 1e-3], "weight": [0.1, 0.2, 0.5]}


class LabelFlipConfig(LoopConfig):
    """The loop and the weight of the flipped answers."""

    lr: float = Field(2e-4, gt=0)
    weight: float = Field(0.2, gt=0, description="of the cross-entropy on the flipped answers")


def label_flip(task: Task, config: LabelFlipConfig | None = None) -> Outcome:
    """Descend ``L_r + 0.2 CE(D_f, 1 - y)`` (what E2URec's table calls Bad-T).

    Args:
        task: the request.
        config: see :class:`LabelFlipConfig`.

    Source: E2URec, arXiv 2403.03536 (scripts); Graves et al. 2021, arXiv 2010.10981 (relabelling).
    """
    config = config or LabelFlipConfig()

    def loss(descent: Descent, step: int) -> tuple[torch.Tensor, Log]:
        if descent.resting:
            return descent.retaining()
        batch = descent.forget.next()
        flipped = F.cross_entropy(descent.logits(batch), 1 - batch.label)
        retain = descent.loss(descent.retain.next())
        noted = {"forget_loss": flipped.detach(), "retain_loss": retain.detach()}
        return retain + config.weight * flipped, noted

    return outcome(task, "label_flip", descend(task, config, of_loss(loss)))
