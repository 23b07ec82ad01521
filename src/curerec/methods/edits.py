"""What the model editors share: which matrix, which prompts make one edit, and what to answer instead."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from curerec.errors import ModelError
from curerec.methods.task import Task
from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.score import device_of, score

Uninformed = Literal["prior", "base"]
Merge = Literal["user", "item"]
CANDIDATE = -1  # history position of the candidate in a span map


def layer_to_edit(model: Any, asked: int | None, depth: float, *, highest: int, where: str) -> int:
    """The layer that an editor changes.

    Args:
        model: whose layers count from 0.
        asked: as configured; None: ``depth``.
        depth: as a share of the layers.
        highest: that can be edited, counted from the last as a list's are; of a model of fewer layers 0.
        where: the setting, for the message.

    Raises:
        ModelError: the layer that is asked for is above the highest.
    """
    n = len(family_of(model).layer_list(model))
    most = max(n + highest, 0)
    if asked is not None and asked > most:
        raise ModelError(
            f"{asked} is above the layers of {n} that can be edited",
            where=where,
            mend=f"Give one from 0 to {most}, or none",
        )
    return min(round(depth * n), most) if asked is None else asked


def mlp_output(model: Any, layer: int) -> Any:
    """The linear map by which an MLP writes to the residual stream (in every family the last projection).

    Raises:
        ModelError: its weights are packed.
    """
    family = family_of(model)
    last = list(family.projections.values())[-1]
    found = family.layer_list(model)[layer].get_submodule(last.path)
    if not plain(found).weight.is_floating_point():
        raise ModelError(
            "its weights are packed in 8 or 4 bits, and this method edits one of them",
            where="model.base_bits",
            mend="Train with 16, or choose another method",
        )
    return found


def plain(module: Any) -> Any:
    """A linear map without its LoRA wrapper."""
    return getattr(module, "base_layer", module)


def transposed(module: Any) -> bool:
    """Whether a linear map keeps its weight as [in, out] (GPT-2's Conv1D) instead of [out, in]."""
    return type(plain(module)).__name__ == "Conv1D"


def uninformed(task: Task, prompts: Prompts, base: Any = None) -> torch.Tensor:
    """What somebody who never saw the deleted data would answer, logits [n, 2].

    Never a retrained model's answer: none exists when a request is judged.

    Args:
        task: the request.
        prompts: [n].
        base: the model before fine-tuning, to answer as it does; None: the share of yes in D_r, whatever is
            asked.
    """
    device = device_of(task.original.model)
    if base is not None:
        return torch.from_numpy(score(base, prompts, task.answers)).to(device)
    share = float(np.clip(task.retain.label.mean(), 1e-3, 1 - 1e-3))
    return torch.tensor([1 - share, share], device=device).log().expand(len(prompts), 2)


def edits_of(task: Task, merge: Merge) -> list[np.ndarray]:
    """Which examples of D_f make one edit: those of a user, or those about an item; int arrays."""
    code = (task.data.user_code if merge == "user" else task.data.item_code)[task.forget.target]
    return [np.flatnonzero(code == c) for c in np.unique(code)]


def title_ends(prompts: Prompts) -> np.ndarray:
    """Position of the last token of each prompt's candidate title, int64 [n]."""
    spans = prompts.spans[prompts.spans[:, 3] == CANDIDATE]
    ends = np.zeros(len(prompts), np.int64)
    ends[spans[:, 0]] = np.maximum(spans[:, 2] - 1, 0)
    return ends
