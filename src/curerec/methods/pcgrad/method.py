"""PCGrad: each gradient loses what conflicts with the other."""

from __future__ import annotations

from typing import Any

import torch

from curerec.methods.losses import ForgetLoss
from curerec.methods.surgery import Weight, WholeVector, operate
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig, retain_weight
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [3e-4, 1e-3, 3e-3], "retain_weight": [None, 1.0, 3.0]}


class PcgradConfig(UnlearnConfig):
    """The loop, with the losses of ``cure``."""

    forget_loss: ForgetLoss = "rewind"


def projected(ff: torch.Tensor, fr: torch.Tensor, rr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (a, b) of the sum of the two projected gradients, float64 [] each.

    Where ``<g_f, g_r> < 0`` each is projected onto the normal plane of the other (the other as it was):
    ``g_f - <g_f, g_r>/|g_r|^2 g_r`` and ``g_r - <g_f, g_r>/|g_f|^2 g_f``.

    Args:
        ff, fr, rr: inner products of g_f and g_r, float64 [].

    Source: Yu et al. 2020, arXiv 2001.06782, algorithm 1 (with two tasks their random order has no say).
    """
    plain, one = (fr >= 0) | (ff == 0) | (rr == 0), torch.ones_like(fr)
    return torch.where(plain, one, 1 - fr / ff), torch.where(plain, one, 1 - fr / rr)


class Pcgrad(WholeVector):
    """The rule in the loop."""

    def mix(self, ff: torch.Tensor, fr: torch.Tensor, rr: torch.Tensor) -> tuple[Weight, Weight]:
        return projected(ff, fr, rr)


def pcgrad(task: Task, config: PcgradConfig | None = None) -> Outcome:
    """The objective of ``cure`` with both gradients projected, over all parameters at once.

    Args:
        task: the request.
        config: see :class:`PcgradConfig`.

    Source: Yu et al. 2020, arXiv 2001.06782.
    """
    config = config or PcgradConfig()
    return operate(task, config, Pcgrad(task.original.model, retain_weight(task, config)), "pcgrad")
