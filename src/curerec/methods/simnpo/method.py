"""SimNPO: negative preference optimisation without a reference model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field

from curerec.methods.descent import Descent, Log, of_loss
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.task import Task
from curerec.records import Outcome

ANSWER_TOKENS = 1  # |y| of the length normalisation: " Yes" and " No" are one token each
SEARCH: dict[str, list[Any]] = {"lr": [1e-4, 3e-4, 1e-3], "beta": [2.5, 4.5], "weight": [0.125, 1.0]}


class SimnpoConfig(LoopConfig):
    """The loop and the loss."""

    beta: float = Field(4.5, gt=0)
    margin: float = Field(0.0, ge=0, description="d: reward margin, nats")
    weight: float = Field(0.125, gt=0, description="of the forget loss; the retain loss has 1")


def simnpo_loss(
    logits: torch.Tensor, label: torch.Tensor, *, beta: float, margin: float = 0.0
) -> torch.Tensor:
    """``-(2/beta) log sigmoid(beta (NLL / |y| - d))``, mean, nats.

    Args:
        logits: [batch, 2].
        label: int64 [batch], the answers to forget.
        beta: > 0.
        margin: d, nats.

    Source: Fan et al. 2024, arXiv 2410.07163, eq. 3.
    """
    nll = F.cross_entropy(logits, label, reduction="none") / ANSWER_TOKENS
    return (-(2 / beta) * F.logsigmoid(beta * (nll - margin))).mean()


def simnpo(task: Task, config: SimnpoConfig | None = None) -> Outcome:
    """Descend ``weight * L_simnpo(D_f) + L_r``.

    Args:
        task: the request.
        config: see :class:`SimnpoConfig`.

    Source: Fan et al. 2024, arXiv 2410.07163; defaults of open-unlearning.
    """
    config = config or SimnpoConfig()

    def loss(descent: Descent, step: int) -> tuple[torch.Tensor, Log]:
        if descent.resting:
            return descent.retaining()
        batch = descent.forget.next()
        forget = simnpo_loss(descent.logits(batch), batch.label, beta=config.beta, margin=config.margin)
        retain = descent.loss(descent.retain.next())
        noted = {"forget_loss": forget.detach(), "retain_loss": retain.detach()}
        return config.weight * forget + retain, noted

    return outcome(task, "simnpo", descend(task, config, of_loss(loss)))
