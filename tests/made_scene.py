"""A tiny request as metrics see it: an original, two retrained models, and one that is to be measured."""

from __future__ import annotations

import copy
from typing import Any

import torch

from curerec.evaluation.candidate import Candidate
from curerec.evaluation.scene import Ground, Scene
from curerec.records import ForgetSplit
from made_models import shaken
from made_tasks import made_task


def made_scene(kind: str = "full", *, family: str = "llama", draws: int = 50) -> Scene:
    """The original is fine-tuned; the retrained models are it with one noise on the weights and a little more
    of their own, the model measured is it with another noise."""
    task = made_task(kind, family=family)
    split = ForgetSplit(task.forget, task.retain, task.control, task.valid, task.valid, task.deleted)
    ground = Ground(task.data, split, task.original, task.tuning, draws=draws, rank_users=5)

    def noisy(start: Any, scale: float, seed: int) -> Any:
        return shaken(copy.deepcopy(start), scale, seed=seed)

    original = task.original.model
    away = noisy(original, 0.05, 3)
    references = tuple(Candidate(noisy(away, 0.005, seed)) for seed in (4, 5))
    return Scene(ground, Candidate(noisy(original, 0.05, 6)), Candidate(original), references, name="new")


def state(model) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def same_state(model, before: dict[str, torch.Tensor]) -> bool:
    """Whether nothing changed."""
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
