"""NGDiff: difference of normalised gradients, with a rate read off the retain loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from curerec.methods.batches import Batch
from curerec.methods.descent import Descent, Log
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.task import Task
from curerec.recommender.score import device_of
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [3e-3, 1e-2, 3e-2], "max_rate": [0.002, 0.005, 0.01, 0.02, 0.1]}


class NgdiffConfig(LoopConfig):
    """The loop; ``lr`` is the first rate, a length in weight space."""

    lr: float = Field(1e-2, gt=0)
    rate_every: int = Field(10, gt=0, description="steps between new rates")
    max_rate: float = Field(0.05, gt=0, description="a rate is never above this")

    def idle(self) -> str | None:
        return "damping is AdamW's, and NGDiff takes plain steps: leave it 0" if self.damping else None


def difference(retain: Sequence[torch.Tensor], forget: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``g_r / |g_r| - g_f / |g_f|``, to be descended, g_f the gradient of the cross-entropy on D_f.

    Source: Jin et al. 2025, arXiv 2410.22086, eq. 8.
    """
    norms = [
        torch.stack([g.double().square().sum() for g in x]).sum().sqrt().clamp_min(1e-12)
        for x in (retain, forget)
    ]
    return [r / norms[0] - f / norms[1] for r, f in zip(retain, forget, strict=True)]


def newton_rate(
    ahead: torch.Tensor, here: torch.Tensor, behind: torch.Tensor, rate: torch.Tensor
) -> torch.Tensor:
    """The rate that minimises the parabola through three losses; as it was where that has no minimum ahead.

    ``rate / 2 (L+ - L-) / (L+ - 2 L0 + L-)``, L+ and L- the losses at ``theta + rate d`` and
    ``theta - rate d``.

    Args:
        ahead: L-, after a step of descent, float64 [].
        here: L0.
        behind: L+, after a step the other way.
        rate: of the steps, float64 [].

    Returns:
        float64 [], on the device.

    Source: Bu and Xu 2024 (GeN), arXiv 2407.02772, eq. 6; NGDiff's automatic rate.
    """
    bend, slope = behind - 2 * here + ahead, behind - ahead
    return torch.where((bend > 0) & (slope > 0), rate / 2 * slope / bend, rate)


def ngdiff(task: Task, config: NgdiffConfig | None = None) -> Outcome:
    """Plain steps along the difference of normalised gradients, of a rate that lowers the retain loss most.

    Args:
        task: the request.
        config: see :class:`NgdiffConfig`.

    Source: Jin et al. 2025, arXiv 2410.22086.
    """
    config = config or NgdiffConfig()
    # On the device, as the losses that it follows from: reading those would make a GPU wait.
    rate = torch.full((), config.lr, dtype=torch.float64, device=device_of(task.original.model))

    def direction(descent: Descent, step: int) -> tuple[list[torch.Tensor], Log]:
        nonlocal rate
        batch = descent.retain.next()
        loss_r, loss_f = descent.loss(batch), descent.loss(descent.forget.next())
        found = difference(descent.grad(loss_r), descent.grad(loss_f))
        if step % config.rate_every == 0:
            new = newton_rate(
                _moved(descent, batch, found, -rate),
                loss_r.detach().double(),
                _moved(descent, batch, found, rate),
                rate,
            )
            rate = new.clamp_max(config.max_rate)
        log = {"forget_loss": loss_f.detach(), "retain_loss": loss_r.detach(), "rate": rate}
        # The optimiser's own rate is config.lr; the step is to have the length of the automatic one.
        return [rate / config.lr * d for d in found], log

    plain = config.model_copy(update={"optimizer": "sgd"})
    return outcome(task, "ngdiff", descend(task, plain, direction, momentum=0.0))


@torch.no_grad()
def _moved(
    descent: Descent, batch: Batch, direction: Sequence[torch.Tensor], rate: torch.Tensor
) -> torch.Tensor:
    """Retain loss at ``theta + rate d``, float64 []; the weights are put back exactly."""
    before = [p.detach().clone() for p in descent.params]
    try:
        for p, d in zip(descent.params, direction, strict=True):
            p.addcmul_(d, rate)  # ``add_`` takes its factor from the host
        return descent.loss(batch).double()
    finally:
        for p, b in zip(descent.params, before, strict=True):
            p.copy_(b)
