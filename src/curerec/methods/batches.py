"""Batches of a request's examples, encoded when they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from curerec.methods.task import Task
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import device_of, on, to_batch
from curerec.recommender.tune import batches
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


class RetainBatches:
    """Batches of D_r with the logits to hold it to: a request must not pay for all the training data.

    Some batches are drawn at a time, encoded and, where their answers are not stored, scored together, and
    cut into batches of like length: little is padded, as in training.

    Args:
        task: encodes, and knows answers.
        size: prompts a batch.
        as_trained: hold them to what was answered to them as they were in training, where the request has
            changed their histories.
        ahead: batches that are drawn at a time.
    """

    def __init__(self, task: Task, size: int, *, as_trained: bool = False, ahead: int = 20) -> None:
        self.task, self.size, self.ahead = task, size, ahead
        self.asked = task.retain_before if as_trained else task.retain
        self.rng = np.random.default_rng([task.seed, 62])
        self.order, self.at = self.rng.permutation(len(task.retain)), 0
        self.ready: list[tuple[Prompts, torch.Tensor]] = []

    def next(self) -> tuple[Prompts, torch.Tensor]:
        """Prompts of a batch, and answer logits to hold them to (:meth:`Task.retain_logits`), [batch, 2]."""
        if not self.ready:
            if self.at + min(self.size, len(self.order)) > len(self.order):
                self.order, self.at = self.rng.permutation(len(self.task.retain)), 0
            index = self.order[self.at : self.at + self.ahead * self.size]
            self.at += len(index)
            prompts, before = self.encoded(self.task.retain.take(index), self.asked.take(index))
            logits = on(device_of(self.task.original.model), before)
            self.ready = [
                (prompts.take(b), logits.index_select(0, on(logits.device, b)))
                for b in batches(prompts.lengths, self.size, self.rng)
            ]
        return self.ready.pop()

    def encoded(self, part: Examples, asked: Examples) -> tuple[Prompts, np.ndarray]:
        """Prompts of examples of D_r, and the answers to hold them to, those to ``asked``, float32 [n, 2]."""
        prompts = self.task.encode(part)
        same = np.array_equal(part.history, asked.history)
        return prompts, self.task.retain_logits(asked, prompts if same else None)
