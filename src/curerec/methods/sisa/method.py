"""SISA: random shards of users, trained slice by slice; a request restarts what it hits."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from curerec.methods.shards.serve import serve
from curerec.methods.shards.together import Together
from curerec.methods.shards.training import ShardConfig, Shards, before_deletion
from curerec.methods.task import Task
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"shards": [2, 4], "epochs_factor": [1.0, 2.0]}


class SisaConfig(ShardConfig):
    """Shards and slices."""

    slices: int = Field(4, gt=0)


def dealt(user: np.ndarray, shards: int, slices: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shard and slice of each example; a user's examples stay together, users are dealt out at random.

    Args:
        user: code of each example, int [n].
        shards: at most so many; no more than there are users.
        slices: of each shard.
        seed: of the draw.

    Returns:
        Two int [n].
    """
    users, code = np.unique(user, return_inverse=True)
    place = np.random.default_rng([seed, 101]).permutation(len(users))
    shards = min(shards, len(users))
    return (place % shards)[code], ((place // shards) % slices)[code]


def sisa(task: Task, config: SisaConfig | None = None) -> Outcome:
    """Restart the hit shards before their first touched slice; the answer is the mean of P(yes).

    Args:
        task: the request.
        config: see :class:`SisaConfig`.

    Source: Bourtoule et al. 2021, arXiv 1912.03817.
    """
    config = config or SisaConfig()

    def make() -> Shards:
        before = before_deletion(task)
        shard, piece = dealt(before.user, config.shards, config.slices, task.seed)
        return Shards(task, before, shard, piece, config.epochs_factor)

    return serve(task, "sisa", make, Together)
