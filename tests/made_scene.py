"""A tiny request as metrics see it: an original, two retrained models, and one that is to be measured."""

from __future__ import annotations

import copy

import torch

from curerec.evaluation.candidate import Candidate
from curerec.evaluation.scene import Ground, Scene
from curerec.records import ForgetSplit
from made_models import shaken
from made_tasks import made_task


def made_scene(kind: str = "full", *, family: str = "llama", draws: int = 50) -> Scene:
    """The original is fine-tuned; the others are it with noise on the weights, each of its own seed."""
    task = made_task(kind, family=family)
    split = ForgetSplit(task.forget, task.retain, task.control, task.valid, task.valid, task.deleted)
    ground = Ground(task.data, split, task.original, task.tuning, draws=draws, rank_users=5)

    def noisy(seed: int) -> Candidate:
        return Candidate(shaken(copy.deepcopy(task.original.model), 0.05, seed=seed))

    references = (noisy(3), noisy(4))
    return Scene(ground, noisy(5), Candidate(task.original.model), references, name="new")


def state(model) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def same_state(model, before: dict[str, torch.Tensor]) -> bool:
    """Whether nothing changed."""
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
