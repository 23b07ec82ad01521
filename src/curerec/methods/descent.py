"""What the direction of a step is computed from: the changing model, its batches, what they are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from curerec.methods.batches import Batch, Batches
from curerec.methods.task import Task
from curerec.methods.unseen import Unseen
from curerec.recommender.score import answer_logits, on


@dataclass
class Descent:
    """What the direction of a step may be computed from.

    Attributes:
        task: the request.
        model: the copy that changes.
        names, params: of what may change.
        forget, retain: streams of batches.
        unseen: rows that stay where they are; None: none.
        resting: whether the last look found the membership gap closed, with a rate that falls to 0: all steps
            are taken then, and those until a look finds it open again are to leave the forget loss out.
    """

    task: Task
    model: Any
    names: list[str]
    params: list[torch.nn.Parameter]
    forget: Batches
    retain: Batches
    unseen: Unseen | None = None
    resting: bool = False

    def logits(self, batch: Batch) -> torch.Tensor:
        """Answer logits of the changing model, [batch, 2], with gradients."""
        use = self.task.runtime
        return answer_logits(self.model, batch.ids, batch.last, self.task.answers, lean=True, runtime=use)

    def original(self, batch: Batch) -> torch.Tensor:
        """Answer logits of theta_o, [batch, 2]; from where training stored them, if it did."""
        logits = self.task.original_logits(batch.examples, batch.prompts)
        return on(batch.ids.device, logits)

    def held_to(self, batch: Batch) -> torch.Tensor:
        """Answer logits that a batch of D_r is held to (:meth:`Task.retain_logits`), [batch, 2].

        Those of theta_o, or in a sequence of requests of the recommender as trained, where they were kept.
        What is to leave theta_o on D_f goes by :meth:`original`.
        """
        logits = self.task.retain_logits(batch.examples, batch.prompts)
        return on(batch.ids.device, logits)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy of the changing model, mean, nats."""
        return F.cross_entropy(self.logits(batch), batch.label)

    def retaining(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss on a batch of D_r alone, and what to note: a step while the forget loss rests."""
        retain = self.loss(self.retain.next())
        return retain, {"retain_loss": retain.detach()}

    def grad(self, loss: torch.Tensor, *, again: bool = False) -> list[torch.Tensor]:
        """Gradient of a loss for ``params``, 0 in rows that stay where they are.

        Args:
            loss: [].
            again: whether a gradient of a loss of the same pass is to follow.
        """
        found = list(torch.autograd.grad(loss, self.params, retain_graph=again))
        return self.held(found)

    def held(self, gradient: list[torch.Tensor]) -> list[torch.Tensor]:
        """A gradient for ``params`` without the rows that stay where they are; changed in place."""
        if self.unseen:
            self.unseen.hold(dict(zip(self.names, gradient, strict=True)))
        return gradient


def frozen_logits(model: Any, batch: Batch, answers: tuple[int, int]) -> torch.Tensor:
    """Answer logits of a model that is not being changed, [batch, 2], usable in a loss."""
    with torch.no_grad():
        return answer_logits(model, batch.ids, batch.last, answers, lean=True)


#: What is noted of a look; of a step also numbers that are still on the device, read at the next look.
Log = dict[str, Any]
#: Given the descent and the number of steps done: the direction to descend, and what to note of it.
Direction = Callable[[Descent, int], tuple[list[torch.Tensor], Log]]
#: The same for methods that descend one loss: the loss and what to note of it.
Loss = Callable[[Descent, int], tuple[torch.Tensor, Log]]


def of_loss(loss: Loss) -> Direction:
    """The direction of a scalar loss: its gradient."""

    def direction(descent: Descent, step: int) -> tuple[list[torch.Tensor], Log]:
        value, log = loss(descent, step)
        return descent.grad(value), {"loss": value.detach(), **log}

    return direction
