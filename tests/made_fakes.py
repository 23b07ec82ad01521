"""The four fakes of unlearning, as weights on disk and as what a service would answer."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from curerec.opened import Opened
from curerec.pipeline import save_unlearned
from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.score import answer_logits
from curerec.records import ForgetRequest, Outcome


def nothing(model: Any) -> Any:
    """As it was."""
    return model


@torch.no_grad()
def destroyed(model: Any) -> Any:
    """Every linear map of the layers replaced by noise of its own size."""
    generator = torch.Generator().manual_seed(0)
    for layer in family_of(model).layer_list(model):
        for p in layer.parameters():
            if p.ndim == 2:
                p.copy_(p.std() * torch.randn(p.shape, generator=generator))
    return model


@torch.no_grad()
def cooled(model: Any, temperature: float = 2.0) -> Any:
    """All logits divided by a temperature, by way of the final norm's weight."""
    family = family_of(model)
    family.decoder(model).get_submodule(family.final_norm).weight.div_(temperature)
    return model


#: By name: what is done to a copy of the weights. A filter before the prompt leaves them as they are.
FAKES: dict[str, Callable[[Any], Any]] = {
    "nothing": nothing,
    "destroyed": destroyed,
    "temperature": cooled,
    "blocked": nothing,
}


def save_fake(opened: Opened, request: ForgetRequest, name: str, out: Path) -> Path:
    """A fake as a recommender's folder, its card as that of any unlearning."""
    model = FAKES[name](copy.deepcopy(opened.recommender.model))
    save_unlearned(opened, Outcome("npo", model, 1.0, 1.0), request, out)
    return out


class Blocking(torch.nn.Module):
    """The original behind a filter that knows the forgotten users' prompts and answers a constant.

    Args:
        model: the original.
        prompts: of D_f; whatever has the same tokens is answered with the constant.
        logits: of (no, yes), the answer to them.
    """

    def __init__(self, model: Any, prompts: Prompts, logits: tuple[float, float]) -> None:
        super().__init__()
        self.model, self.logits = model, logits
        cut = prompts.offsets
        self.blocked = {tuple(prompts.ids[a:b].tolist()) for a, b in itertools.pairwise(cut)}

    def answer_logits(self, ids: torch.Tensor, last: torch.Tensor, answers: tuple[int, int]) -> torch.Tensor:
        out = answer_logits(self.model, ids, last, answers).clone()
        for row in range(len(last)):
            if tuple(ids[row, : last[row] + 1].tolist()) in self.blocked:
                out[row] = torch.tensor(self.logits)
        return out
