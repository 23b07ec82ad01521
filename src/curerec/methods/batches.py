"""Batches of a request's examples, encoded when they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from curerec.methods.task import Task
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import device_of, on, to_batch
from curerec.records import Examples


@dataclass(frozen=True)
class Batch:
    """Prompts on the device.

    Attributes:
        ids: int64 [batch, pos], right-padded.
        last: int64 [batch], answer positions.
        label: int64 [batch].
        index: int64 [batch], which of the examples.
        examples, prompts: those, [batch].
    """

    ids: torch.Tensor
    last: torch.Tensor
    label: torch.Tensor
    index: np.ndarray
    examples: Examples
    prompts: Prompts


class Batches:
    """Batches of examples without end, encoded when they are drawn: a request must not pay for all of D_r.

    Args:
        task: encodes.
        examples: to draw from, [n].
        size: prompts a batch; an epoch's last may be smaller.
        salt: of the seed.
        order: given a generator, one epoch's order, int [n]; None: shuffled.
    """

    def __init__(
        self,
        task: Task,
        examples: Examples,
        size: int,
        salt: int,
        *,
        order: Callable[[np.random.Generator], np.ndarray] | None = None,
    ) -> None:
        self.task, self.examples, self.size = task, examples, size
        self.rng = np.random.default_rng([task.seed, salt])
        self.order = order or (lambda rng: rng.permutation(len(examples)))
        self.per_epoch = -(-len(examples) // size)
        self.rest: np.ndarray = np.zeros(0, int)

    def next(self) -> Batch:
        """The next batch."""
        if not len(self.rest):
            self.rest = self.order(self.rng)
        index, self.rest = self.rest[: self.size], self.rest[self.size :]
        return self.at(index)

    def at(self, index: np.ndarray) -> Batch:
        """The batch of given examples."""
        device = device_of(self.task.original.model)
        examples = self.examples.take(index)
        prompts = self.task.encode(examples)
        ids, last = to_batch(prompts, np.arange(len(prompts)), device)
        label = on(device, prompts.label.astype(np.int64))
        return Batch(ids, last, label, index, examples, prompts)
