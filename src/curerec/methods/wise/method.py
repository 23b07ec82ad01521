"""WISE: uninformed answers in a side memory, and a router that finds the prompts they are for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from curerec.methods.batches import Batch
from curerec.methods.descent import Descent, Log
from curerec.methods.edits import Uninformed, edits_of, layer_to_edit, mlp_output, uninformed
from curerec.methods.loop import LoopConfig, descend, outcome
from curerec.methods.losses import kl_to
from curerec.methods.task import Task
from curerec.methods.wise.memory import SideMemory, attach
from curerec.recommender.score import answer_logits, by_length, device_of, to_batch
from curerec.records import Outcome

DEPTH = 27 / 32  # the layer of LLaMA-2-7B that WISE copies, as a share of its layers
SEARCH: dict[str, list[Any]] = {
    "answer": ["prior", "base"],
    "margin_scale": [0.01, 0.1, 1.0],
    "lr": [0.1, 1.0],
    "max_steps": [70, 700],
}


class WiseConfig(LoopConfig):
    """Site, margins, router and the loop."""

    layer: int | None = Field(None, ge=0, description="none: 27/32 of the depth")
    answer: Uninformed = Field("prior", description="what to answer instead")
    share: float = Field(0.2, gt=0, le=1, description="of the matrix that the memory may differ in")
    out_margin: float = Field(5.0, gt=0, description="activation of retained prompts is to stay below")
    in_margin: float = Field(20.0, gt=0, description="activation of forgotten prompts is to rise above")
    gap_margin: float = Field(10.0, gt=0, description="least distance between the two")
    margin_scale: float = Field(
        1.0, gt=0, description="factor of the three: a small model's outputs are short"
    )
    ratio: float = Field(0.88, gt=0, description="threshold, in activations of the least excited user")
    bound: float = Field(1.0, gt=0, description="largest change of an entry")
    lr: float = Field(1.0, gt=0)
    optimizer: Literal["sgd"] = "sgd"
    batch_size: int = Field(32, gt=0)
    max_steps: int = Field(70, gt=0)
    average: float = Field(0.0, ge=0, lt=1)
    check_every: int = Field(10, gt=0)


def margin_loss(inside: torch.Tensor, outside: torch.Tensor, config: WiseConfig) -> torch.Tensor:
    """``max(0, out - a) + max(0, b - in) + max(0, g - (in - out))``, each a mean over those above 0.

    A prompt, or pair, that keeps its margin does not thin out the others.

    Args:
        inside: activations of prompts to be answered from the memory, [n].
        outside: of all others, [m].
        config: gives a = 5, b = 20, g = 10 and their common factor.

    Source: Wang et al. 2024 (WISE), arXiv 2405.14768, eq. 5; the mean as in their published code.
    """
    s = config.margin_scale
    return (
        _missed(outside - s * config.out_margin)
        + _missed(s * config.in_margin - inside)
        + _missed(s * config.gap_margin - (inside[:, None] - outside[None]))
    )


def _missed(by: torch.Tensor) -> torch.Tensor:
    """By how much a margin is missed, mean over what misses it; 0 where nothing does."""
    return F.relu(by).sum() / (by > 0).sum().clamp(min=1)


def wise(task: Task, config: WiseConfig | None = None) -> Outcome:
    """Teach a side memory uninformed answers on D_f, and route to it what resembles D_f.

    The weights proper stay those of theta_o: everything is remembered, and hidden.

    Args:
        task: the request.
        config: see :class:`WiseConfig`.

    Raises:
        ModelError: the model has not the layer that is to be edited, or its weights are packed.

    Source: Wang et al. 2024 (WISE), arXiv 2405.14768; one memory, so no merging of several.
    """
    config = config or WiseConfig()
    with task.clock.stage("prepare"):
        base = task.base_model() if config.answer == "base" else None
        model = task.copy_of_model()
        layer = layer_to_edit(model, config.layer, DEPTH, highest=-1, where="methods.wise.layer")
        module = mlp_output(model, layer)
        side = attach(module, config.share, task.seed)
        name = next(n for n, p in model.named_parameters() if p is side.delta)
        target = uninformed(task, task.encode(task.forget), base)

    def activation(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = answer_logits(model, batch.ids, batch.last, task.answers)
        assert side.activation is not None
        rows = torch.arange(len(batch.last), device=batch.last.device)
        return logits, side.activation[rows, batch.last]

    @torch.no_grad()
    def bounded() -> None:
        side.delta.clamp_(-config.bound, config.bound)

    def direction(descent: Descent, step: int) -> tuple[list[torch.Tensor], Log]:
        bounded()  # what the last step overstepped
        side.editing = True
        batch = descent.forget.next()
        logits, inside = activation(batch)
        _, outside = activation(descent.retain.next())
        answer, margin = kl_to(logits, target[batch.index]), margin_loss(inside, outside, config)
        (grad,) = descent.grad(answer + margin)
        side.editing, side.activation = False, None
        noted = {"forget_loss": answer.detach(), "margin_loss": margin.detach()}
        return [grad * side.mask], noted

    def find_threshold() -> None:
        bounded()
        side.threshold.fill_(config.ratio * least_excited(task, model, side))

    done = descend(
        task, config, direction, model=model, names=[name], momentum=0.0, before_look=find_threshold
    )
    return outcome(
        task,
        "wise",
        replace(done, n_trainable=int(side.mask.sum())),
        layer=layer,
        changed=(name,),
        storable=False,
        threshold=float(side.threshold),
    )


@torch.no_grad()
def least_excited(task: Task, model: Any, side: SideMemory) -> float:
    """Least mean activation of any user's forget prompts: the weakest edit."""
    prompts = task.encode(task.forget)
    found = np.zeros(len(prompts))
    side.editing = True
    for index in by_length(prompts, 128):
        ids, last = to_batch(prompts, index, device_of(model))
        answer_logits(model, ids, last, task.answers)
        assert side.activation is not None
        found[index] = side.activation[torch.arange(len(last), device=last.device), last].cpu().numpy()
    side.editing, side.activation = False, None
    return float(min(found[rows].mean() for rows in edits_of(task, "user")))
