"""Rules on the pair of whole gradients: a mix whose weights follow from three inner products."""

from __future__ import annotations

from typing import Any

import torch

from curerec.methods.loop import outcome
from curerec.methods.rules import Gradients, Rules, times, uniform
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig, run
from curerec.recommender.score import device_of
from curerec.recommender.units import units_of
from curerec.records import Outcome

Weight = float | torch.Tensor  # of a gradient in a mix; a tensor is float64 []


class WholeVector(Rules):
    """Combines g_f and w g_r as two vectors over all parameters: ``a g_f + b w g_r``.

    Subclasses say what a and b are. All of it stays on the device: a rule that reads its inner products, or
    branches on them, makes a GPU wait in every step.

    Args:
        model: gives the parameters that may change.
        weight: w, weight of the retain gradient.
    """

    def __init__(self, model: Any, weight: float) -> None:
        units = units_of(model, "projection")
        super().__init__(units, uniform(units, device_of(model)), weight=weight)

    def mix(self, ff: torch.Tensor, fr: torch.Tensor, rr: torch.Tensor) -> tuple[Weight, Weight]:
        """(a, b) from the inner products of g_f and w g_r, float64 [] each; here their plain sum."""
        return 1.0, 1.0

    def combine(
        self,
        forget: Gradients,
        retain: Gradients,
        scale: Gradients | None = None,
        *,
        masked: bool = False,
    ) -> tuple[Gradients, dict[str, torch.Tensor]]:
        """Directions to descend; as :meth:`Rules.combine`, with the whole model as the one unit."""
        scaled = {n: self.weight * g for n, g in retain.items()}
        f, r = (side if scale is None else times(side, scale) for side in (forget, scaled))
        ff, fr, rr = inner(f, f), inner(f, r), inner(r, r)
        a, b = self.mix(ff, fr, rr)
        out = {n: a * forget[n] + b * scaled[n] for n in forget}
        return out, noted(ff, fr, rr)


def inner(x: Gradients, y: Gradients) -> torch.Tensor:
    """Inner product over all parameters (one at least), summed in double precision, [] on their device."""
    parts = [(x[n].double() * y[n].double()).sum() for n in x]
    return sum(parts[1:], parts[0])


def noted(ff: torch.Tensor, fr: torch.Tensor, rr: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the loop notes of a step, [1] each: the cosine (nan: a side is 0) and whether they conflict."""
    norm = ff.sqrt() * rr.sqrt()
    cos = torch.where(norm > 0, fr / norm, torch.nan)
    return {"cos": cos[None], "projected": (fr < 0)[None]}


def operate(task: Task, config: UnlearnConfig, rules: WholeVector, name: str) -> Outcome:
    """The update loop that ``cure`` uses, with a rule on the whole pair."""
    return outcome(task, name, run(task, rules, config))
