"""Training shard by shard and slice by slice, and restarting from the last state before a deletion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field

from curerec.config import Strict
from curerec.methods.loop import free, store, tuned_names
from curerec.methods.task import Task
from curerec.progress import Advance
from curerec.recommender.tune import tune
from curerec.records import Examples

State = list[torch.Tensor]


class ShardConfig(Strict):
    """How many shards; the recipe of each is the original's."""

    shards: int = Field(4, gt=0)
    epochs_factor: float = Field(1.0, gt=0, description="of the original's epochs, for each shard")


@dataclass(frozen=True)
class Before:
    """The training data as they were, next to what is left of them.

    Attributes:
        examples: D_f, what leaves for want of history, and D_r as trained on, [n].
        after: position in D_r of what each is now, int [n]; -1: it is not there any more.
        touched: bool [n], gone or with a deleted interaction in its history.
        user: user code, int [n].
    """

    examples: Examples
    after: np.ndarray
    touched: np.ndarray
    user: np.ndarray


def before_deletion(task: Task) -> Before:
    """The training data from before the request; histories of D_r get their deleted interactions back."""
    as_trained = task.retain_before
    # An example without history enough shows what is deleted, too: its shard learnt from that prompt.
    parts = [task.forget, *([] if task.dropped is None else [task.dropped]), as_trained]
    n = sum(map(len, parts[:-1]))
    whole = Examples(
        np.concatenate([part.target for part in parts]),
        np.concatenate([part.history for part in parts]),
        np.concatenate([part.label for part in parts]),
    )
    changed = (as_trained.history != task.retain.history).any(1)
    return Before(
        whole,
        np.r_[np.full(n, -1), np.arange(len(task.retain))],
        np.r_[np.ones(n, bool), changed],
        task.data.user_code[whole.target],
    )


class Shards:
    """One model a shard, with the states in which each of its slices was begun.

    A shard is trained on its first slice, then on the first two, and so on. With R slices each stage takes
    ``2 / (R + 1)`` of the epochs, so that a shard sees as much as in one training. What is forgotten restarts
    a shard from the state before its first touched slice, on the data that are left, with the same seed.

    Args:
        task: the request; its recipe is used.
        before: from :func:`before_deletion`.
        shard: of each example, int [n].
        piece: slice of each example, int [n], from 0.
        epochs_factor: of the recipe's epochs.

    Source: Bourtoule et al. 2021 (SISA), arXiv 1912.03817, section 4.
    """

    def __init__(
        self, task: Task, before: Before, shard: np.ndarray, piece: np.ndarray, epochs_factor: float = 1.0
    ) -> None:
        self.task, self.before, self.shard, self.piece = task, before, shard, piece
        self.n_shards, self.n_pieces = int(shard.max()) + 1, int(piece.max()) + 1
        self.work = task.fresh()
        self.names = tuned_names(self.work)
        self.params = free(self.work, self.names)
        share = 2 / (self.n_pieces + 1)
        self.tuning = task.tuning.model_copy(update={"epochs": task.tuning.epochs * share * epochs_factor})
        first = [p.detach().clone() for p in self.params]
        #: states[k][r]: of shard k before slice r; the last one after all.
        self.states: list[list[State]] = [[first] for _ in range(self.n_shards)]
        self.restarted: list[int | None] = [None] * self.n_shards
        #: Shards of whose data a request left something. The others are the base again, which learnt nothing
        #: of the task: with a say of their own they would pull every answer towards its.
        self.left = list(range(self.n_shards))

    def train(self, advance: Advance | None = None) -> None:
        """Train every shard on the data as they were."""
        for k in range(self.n_shards):
            self._continue(k, 0, deleted=False)
            if advance:
                advance(k + 1, self.n_shards)

    def forget(self, advance: Advance | None = None) -> int:
        """Restart the shards that are hit on the data that are left; returns how many."""
        hit = np.unique(self.shard[self.before.touched])
        for done, k in enumerate(hit, start=1):
            first = int(self.piece[self.before.touched & (self.shard == k)].min())
            self.restarted[k] = first
            self.states[k] = self.states[k][: first + 1]
            self._continue(int(k), first, deleted=True)
            if self.rows(int(k), self.n_pieces - 1, deleted=True) is None:
                self.left.remove(int(k))
            if advance:
                advance(done, len(hit))
        return len(hit)

    def model_of(self, k: int) -> Any:
        """The working model in the last state of a shard; valid until the next call."""
        store(self.params, self.states[k][-1])
        return self.work.eval()

    def rows(self, k: int, last: int, *, deleted: bool) -> Examples | None:
        """What a shard is trained on up to a slice, before the deletion or after it; None: nothing."""
        mine = (self.shard == k) & (self.piece <= last)
        if not deleted:
            return self.before.examples.take(np.flatnonzero(mine)) if mine.any() else None
        left = self.before.after[mine]
        left = left[left >= 0]
        return self.task.retain.take(left) if len(left) else None

    def _continue(self, k: int, start: int, *, deleted: bool) -> None:
        store(self.params, self.states[k][-1])
        for r in range(start, self.n_pieces):
            data = self.rows(k, r, deleted=deleted)
            if data is not None:
                seed = 1 + self.task.seed * 10_000 + k * 100 + r
                tune(
                    self.work,
                    self.task.encode(data),
                    self.task.answers,
                    self.tuning,
                    seed=seed,
                    runtime=self.task.runtime,
                )
            self.states[k].append([p.detach().clone() for p in self.params])
