"""What a process holds of a model's frozen products before, in and after the steps of its training."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from curerec import pipeline
from curerec.methods.retrain import method as retrain
from curerec.recommender import tune as loop
from curerec.recommender.families import family_of

PHASES = ("before", "steps", "after")


class Held:
    """Looks at every linear map of every pass, there and back.

    Attributes:
        most: bytes held at most, by phase.
        whole: bytes of all frozen products.
        layer, product: of the largest layer, and of the largest product.
    """

    def __init__(self):
        self.phase, self.most, self.products = "before", {}, []
        self.whole = self.layer = self.product = 0

    def watch(self, model):
        self.products, self.whole, self.layer, self.product = [], 0, 0, 0
        for layer in family_of(model).layer_list(model):
            named = [m for n, m in layer.named_modules() if "lora_" not in n]
            found = [m for m in named if isinstance(m, torch.nn.Linear)]
            sizes = [m.weight.numel() * m.weight.element_size() for m in found]  # of all processes' parts
            self.products += found
            self.whole += sum(sizes)
            self.layer, self.product = max(self.layer, sum(sizes)), max(self.product, *sizes)
        self.look()

    def look(self):
        own = [m.weight.to_local() if hasattr(m.weight, "to_local") else m.weight for m in self.products]
        self.most[self.phase] = max(self.most.get(self.phase, 0), sum(w.nbytes for w in own))

    def about(self):
        return {"most": self.most, "whole": self.whole, "layer": self.layer, "product": self.product}


def is_half(about, put_together="product"):
    """Whether a process of two had half of the products throughout, and all of one or of a layer in use."""
    half, more = about["whole"] // 2, about[put_together] // 2
    return tuple(about["most"]) == PHASES and all(half <= n <= half + more for n in about["most"].values())


@contextlib.contextmanager
def held():
    """Looks at the model that is watched, as long as this is open."""
    seen = Held()
    forward, optimise = torch.nn.Linear.forward, loop.optimise

    def passed(module, x):
        seen.look()
        if x.requires_grad:  # its gradient is there when the way back has just used the product
            x.register_hook(lambda grad: seen.look())
        return forward(module, x)

    def steps(*arguments, **named):
        seen.phase = "steps"
        try:
            return optimise(*arguments, **named)
        finally:
            seen.phase = "after"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", passed)
        patch.setattr(loop, "optimise", steps)
        yield seen


@contextlib.contextmanager
def held_by_a_command():
    """The same of a command that trains an adapter; what was seen is written beside its ``--out``."""
    tune = loop.tune
    with held() as seen, pytest.MonkeyPatch.context() as patch:

        def tuned(model, *arguments, **named):
            seen.watch(model)
            return tune(model, *arguments, **named)

        for module in (pipeline, retrain):
            patch.setattr(module, "tune", tuned)
        try:
            yield
        finally:
            out = Path(sys.argv[sys.argv.index("--out") + 1])
            rank = os.environ.get("RANK", "0")
            out.with_name(f"{out.name}-held-{rank}.json").write_text(json.dumps(seen.about()))
