"""APA: shards of like prompts, and adapters merged anew for every prompt."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from pydantic import Field

from curerec.methods.apa.merged import Adaptive, states_of
from curerec.methods.receraser.partition import balanced
from curerec.methods.shards.serve import serve
from curerec.methods.shards.together import Together
from curerec.methods.shards.training import ShardConfig, Shards, before_deletion
from curerec.methods.task import Task
from curerec.recommender.score import score
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"tau": [10.0, 100.0, 1000.0], "neighbours": [20, 100]}


class ApaConfig(ShardConfig):
    """Shards and the weights of the merge."""

    tau: float = Field(1000.0, ge=0, description="sharpness of the weights; 0 is a plain mean")
    neighbours: int = Field(20, gt=0, description="validation prompts whose error decides")
    valid_size: int = Field(1000, gt=0, description="validation prompts that may be neighbours")


def apa(task: Task, config: ApaConfig | None = None) -> Outcome:
    """Retrain the hit adapters; each prompt is answered by their merge, weighted by its neighbours' errors.

    Args:
        task: the request.
        config: see :class:`ApaConfig`.

    Source: Hu et al. 2024, arXiv 2404.10327.
    """
    config = config or ApaConfig()
    base = functools.cache(task.base_model)  # loaded where it is first asked, in the making

    def make() -> Shards:
        before = before_deletion(task)
        states = states_of(base(), task.encode(before.examples))
        n = min(config.shards, len(np.unique(states, axis=0)))
        shard = balanced(states, n, seed=task.seed)
        return Shards(task, before, shard, np.zeros(len(shard), int), config.epochs_factor)

    def answer(shards: Shards) -> Together:
        prompts = task.encode(task.sample(task.valid, config.valid_size, 105))
        said = np.stack([score(shards.model_of(k), prompts, task.answers) for k in shards.left])
        wrong = torch.from_numpy(said).softmax(-1)[:, np.arange(len(prompts)), 1 - prompts.label]
        keys = torch.from_numpy(states_of(base(), prompts)).to(next(base().parameters()).device)
        return Adaptive(
            shards, base(), keys, wrong.to(keys.device), tau=config.tau, neighbours=config.neighbours
        )

    return serve(task, "apa", make, answer)
