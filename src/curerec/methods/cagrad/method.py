"""CAGrad: the direction near the mean gradient that helps the worse-off objective most."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from curerec.methods.losses import ForgetLoss
from curerec.methods.surgery import WholeVector, operate
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig, retain_weight
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [3e-4, 1e-3, 3e-3], "c": [0.2, 0.5, 0.8]}


class CagradConfig(UnlearnConfig):
    """The loop, with the losses of ``cure``, and the radius."""

    forget_loss: ForgetLoss = "rewind"
    c: float = Field(0.5, ge=0, lt=1, description="radius around the mean gradient, in its norms")


def dual(ff: float, fr: float, rr: float, c: float) -> float:
    """The weight x in [0, 1] of g_f that minimises CAGrad's dual, exactly.

    ``F(x) = <g_x, g_0> + c |g_0| |g_x|``, ``g_x = x g_f + (1 - x) g_r``, ``g_0 = (g_f + g_r) / 2``. F is
    convex. With ``u = g_f - g_r`` the square ``|g_x|^2`` is ``m^2 + t^2`` for ``t = (x - x_0) |u|``, and
    ``F' = 0`` reads ``t / sqrt(m^2 + t^2) = -<u, g_0> / (c |g_0| |u|)``; without a root in [0, 1] an
    end is best.

    Args:
        ff, fr, rr: inner products of g_f and g_r.
        c: radius.
    """
    uu = max(ff - 2 * fr + rr, 0.0)
    g0 = math.sqrt(max(ff + 2 * fr + rr, 0.0)) / 2
    slope = (ff - rr) / 2  # <u, g_0>
    if uu == 0:
        return 0.5
    reach = c * g0 * math.sqrt(uu)
    if abs(slope) >= reach:  # the linear term wins everywhere
        return 0.5 if slope == 0 else float(slope < 0)
    x0 = (rr - fr) / uu
    m = math.sqrt(max(ff * rr - fr * fr, 0.0) / uu)
    ratio = -slope / reach
    return min(1.0, max(0.0, x0 + ratio * m / math.sqrt(1 - ratio**2) / math.sqrt(uu)))


class Cagrad(WholeVector):
    """The rule in the loop."""

    c = 0.5

    def mix(self, ff: float, fr: float, rr: float) -> tuple[float, float]:
        """``g_0 + c |g_0| g_x / |g_x|``."""
        x = dual(ff, fr, rr, self.c)
        norm = math.sqrt(max(x * x * ff + 2 * x * (1 - x) * fr + (1 - x) ** 2 * rr, 0.0))
        g0 = math.sqrt(max(ff + 2 * fr + rr, 0.0)) / 2
        push = self.c * g0 / norm if norm > 0 else 0.0
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
