"""Models in double precision throughout, for checks against finite differences."""

from __future__ import annotations

import copy
from typing import Any

import torch


class DoubleNorm(torch.nn.Module):
    """An RMS norm that stays in double precision; the families' own compute in single."""

    def __init__(self, gain: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(gain), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


def doubled(model: Any) -> Any:
    """A copy in double precision, every RMS norm included."""
    model = copy.deepcopy(model).double()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                eps = getattr(child, "variance_epsilon", None)
                one = 1.0 if type(child).__name__.startswith("Gemma") else 0.0
                gain = child.weight.detach() + one
                setattr(parent, name, DoubleNorm(gain, child.eps if eps is None else eps))
    return model
