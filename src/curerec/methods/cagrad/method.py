"""CAGrad: the direction near the mean gradient that helps the worse-off objective most."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from curerec.methods.losses import ForgetLoss
from curerec.methods.surgery import Weight, WholeVector, operate
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig, retain_weight
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [3e-4, 1e-3, 3e-3], "c": [0.2, 0.5, 0.8]}


class CagradConfig(UnlearnConfig):
    """The loop, with the losses of ``cure``, and the radius."""

    forget_loss: ForgetLoss = "rewind"
    c: float = Field(0.5, ge=0, lt=1, description="radius around the mean gradient, in its norms")


def dual(ff: torch.Tensor, fr: torch.Tensor, rr: torch.Tensor, c: float) -> torch.Tensor:
    """The weight x in [0, 1] of g_f that minimises CAGrad's dual, exactly, float64 [].

    ``F(x) = <g_x, g_0> + c |g_0| |g_x|``, ``g_x = x g_f + (1 - x) g_r``, ``g_0 = (g_f + g_r) / 2``. F is
    convex. With ``u = g_f - g_r`` the square ``|g_x|^2`` is ``m^2 + t^2`` for ``t = (x - x_0) |u|``, and
    ``F' = 0`` reads ``t / sqrt(m^2 + t^2) = -<u, g_0> / (c |g_0| |u|)``; without a root in [0, 1] an
    end is best.

    Args:
        ff, fr, rr: inner products of g_f and g_r, float64 [].
        c: radius.
    """
    uu = (ff - 2 * fr + rr).clamp_min(0)
    g0 = (ff + 2 * fr + rr).clamp_min(0).sqrt() / 2
    slope = (ff - rr) / 2  # <u, g_0>
    reach = c * g0 * uu.sqrt()
    x0 = (rr - fr) / uu
    m = ((ff * rr - fr * fr).clamp_min(0) / uu).sqrt()
    ratio = -slope / reach
    # Without a value where one of the other cases holds, or a gradient is past all bounds: then an end.
    inside = (x0 + ratio * m / (1 - ratio**2).sqrt() / uu.sqrt()).nan_to_num(0.0).clamp(0, 1)
    end = 0.5 - slope.sign() / 2
    x = torch.where(slope.abs() >= reach, end, inside)  # there the linear term wins everywhere
    return torch.where(uu == 0, 0.5, x)


class Cagrad(WholeVector):
    """The rule in the loop."""

    c = 0.5

    def mix(self, ff: torch.Tensor, fr: torch.Tensor, rr: torch.Tensor) -> tuple[Weight, Weight]:
        """``g_0 + c |g_0| g_x / |g_x|``."""
        x = dual(ff, fr, rr, self.c)
        norm = (x * x * ff + 2 * x * (1 - x) * fr + (1 - x) ** 2 * rr).clamp_min(0).sqrt()
        g0 = (ff + 2 * fr + rr).clamp_min(0).sqrt() / 2
        push = torch.where(norm > 0, self.c * g0 / norm, 0.0)
        return 0.5 + push * x, 0.5 + push * (1 - x)


def cagrad(task: Task, config: CagradConfig | None = None) -> Outcome:
    """The objective of ``cure``, descended in CAGrad's direction, over all parameters at once.

    Args:
        task: the request.
        config: see :class:`CagradConfig`.

    Source: Liu et al. 2021, arXiv 2110.14048, eq. 3 and algorithm 1 (without rescaling).
    """
    config = config or CagradConfig()
    rule = Cagrad(task.original.model, retain_weight(task, config))
    rule.c = config.c
    return operate(task, config, rule, "cagrad")
