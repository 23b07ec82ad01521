"""GRU: the forget gradient, rectified by a running average of the retain gradient."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from curerec.methods.losses import ForgetLoss
from curerec.methods.rules import Gradients, times
from curerec.methods.surgery import WholeVector, inner, noted, operate
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig, retain_weight
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [3e-4, 1e-3, 3e-3], "ema": [0.8, 0.95]}


class GruConfig(UnlearnConfig):
    """The loop, with the losses of ``cure``, and the average."""

    forget_loss: ForgetLoss = "rewind"
    ema: float = Field(0.8, gt=0, le=1, description="share of the newest retain gradient in its average")
    descend_retain: bool = Field(False, description="also descend w g_r; the paper only rectifies g_f")

    def idle(self) -> str | None:
        # With ``projection`` w is in what AdamW is taken to see, and so acts.
        if self.retain_weight is not None and not (self.descend_retain or self.projection):
            return "retain_weight is of g_r, which is not descended: leave it null, or set descend_retain"
        return super().idle()


class Gru(WholeVector):
    """``g_f - min(0, <g_f, m>) / |m|^2 m``, m the average of the retain gradients so far."""

    ema = 0.8
    descend_retain = False
    mean: Gradients | None = None

    def combine(
        self,
        forget: Gradients,
        retain: Gradients,
        scale: Gradients | None = None,
        *,
        masked: bool = False,
    ) -> tuple[Gradients, dict[str, torch.Tensor]]:
        """Directions to descend; as :meth:`Rules.combine`, with the whole model as the one unit."""
        if self.mean is None:
            self.mean = {n: torch.zeros_like(g) for n, g in retain.items()}
        self.mean = {n: torch.lerp(m, retain[n], self.ema) for n, m in self.mean.items()}
        f, m = (side if scale is None else times(side, scale) for side in (forget, self.mean))
        ff, fr, rr = inner(f, f), inner(f, m), inner(m, m)
        pull = torch.where((fr < 0) & (rr > 0), -fr / rr, 0.0)
        out = {n: forget[n] + pull * self.mean[n] for n in forget}
        if self.descend_retain:
            out = {n: g + self.weight * retain[n] for n, g in out.items()}
        return out, noted(ff, fr, rr)


def gru(task: Task, config: GruConfig | None = None) -> Outcome:
    """Descend the forget loss of ``cure`` along its rectified gradient.

    Args:
        task: the request.
        config: see :class:`GruConfig`.

    Source: Wang et al. 2025, arXiv 2503.09117.
    """
    config = config or GruConfig()
    rule = Gru(task.original.model, retain_weight(task, config))
    rule.ema, rule.descend_retain = config.ema, config.descend_retain
    return operate(task, config, rule, "gru")
