"""What AdamW makes of a gradient: for rules that ask where two steps conflict, not two gradients."""

from __future__ import annotations

import torch

from curerec.methods.rules import Gradients


class Preconditioner:
    """Factors that AdamW scales a gradient's entries by: ``1 / (sqrt(v) + eps)``.

    v is the running mean of squares of the plain sum of both gradients where weights may move, unbiased as
    AdamW's own. That one is of what the rules made of them, which is not known before they have.

    Args:
        damping: eps as a multiple of the root mean square of the first gradient, as in
            :class:`curerec.methods.loop.LoopConfig`; 0: 1e-8.
        decay: of the running mean.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, without the momentum.
    """

    def __init__(self, damping: float = 0.0, *, decay: float = 0.999) -> None:
        self.damping, self.decay = damping, decay
        self.square: Gradients = {}
        self.steps, self.eps = 0, 1e-8

    @torch.no_grad()
    def factors(self, total: Gradients) -> Gradients:
        """Factors of this step, by parameter name.

        Args:
            total: sum of the gradients of this step; is taken into the mean first.
        """
        if not self.steps and self.damping:
            squares = sum(float(g.float().square().sum()) for g in total.values())
            mean = squares / max(1, sum(g.numel() for g in total.values()))
            self.eps = max(self.eps, self.damping * mean**0.5)
        self.steps += 1
        unbiased = 1 - self.decay**self.steps
        out: Gradients = {}
        for name, g in total.items():
            if name not in self.square:
                self.square[name] = torch.zeros_like(g, dtype=torch.float32)
            running = self.square[name].lerp_(g.float().square(), 1 - self.decay)
            out[name] = (running / unbiased).sqrt_().add_(self.eps).reciprocal_()
        return out
