"""RecEraser: balanced clusters of users as shards, and attention over the shards' answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field

from curerec.methods.batches import Batches
from curerec.methods.receraser.partition import balanced, factors
from curerec.methods.shards.serve import serve
from curerec.methods.shards.together import Together, last_state
from curerec.methods.shards.training import ShardConfig, Shards, before_deletion
from curerec.methods.task import Task
from curerec.recommender import parallel
from curerec.recommender.score import answer_logits
from curerec.recommender.tune import TuneConfig, optimise
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"shards": [2, 4], "attention_lr": [1e-3, 1e-2]}


class ReceraserConfig(ShardConfig):
    """Shards, their clustering and the attention."""

    width: int = Field(64, gt=0, description="of the user vectors")
    rounds: int = Field(50, gt=0, description="T: of the clustering, at most")
    cap: float = Field(1.2, ge=1, description="largest shard, in users, over the mean")
    attention_width: int = Field(32, gt=0)
    attention_lr: float = Field(3e-3, gt=0)
    attention_steps: int = Field(60, gt=0)
    batch_size: int = Field(64, gt=0)


class Attending(Together):
    """The shards' answers weighted by attention over their states.

    ``alpha_k = softmax_k(q_k^T relu(W_k s_k + b_k))``, s_k the state of shard k at the answer position and
    q_k the shard's own query; the answer is ``sum_k alpha_k p_k``.

    Source: Chen et al. 2022 (RecEraser), arXiv 2201.06820, eq. 10 to 13, on states instead of embeddings.
    """

    def __init__(self, shards: Shards, width: int, seed: int) -> None:
        super().__init__(shards)
        n, d = len(shards.left), shards.work.config.hidden_size
        device = next(shards.work.parameters()).device
        generator = torch.Generator().manual_seed(seed)

        def made(*shape: int) -> torch.nn.Parameter:
            value = torch.randn(shape, generator=generator) / max(shape[1], 1) ** 0.5
            return torch.nn.Parameter(value.to(device))

        self.transform, self.query = made(n, d, width), made(n, width)
        self.bias = torch.nn.Parameter(torch.zeros(n, width, device=device))

    def weights(self, states: torch.Tensor) -> torch.Tensor:
        """Attention, [shards, batch], of states [shards, batch, d_model]."""
        inner = torch.einsum("kbd,kdw->kbw", states, self.transform) + self.bias[:, None]
        return torch.einsum("kbw,kw->kb", inner.relu(), self.query).softmax(0)

    def read(
        self, ids: torch.Tensor, last: torch.Tensor, answers: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States [shards, batch, d_model] and answers [shards, batch, 2], without gradients."""
        with torch.no_grad():
            states = torch.stack([last_state(m, ids, last) for m in self.models])
            return states, self.probabilities(ids, last, answers)

    def answer_logits(self, ids: torch.Tensor, last: torch.Tensor, answers: tuple[int, int]) -> torch.Tensor:
        states, said = self.read(ids, last, answers)
        return (self.weights(states)[..., None] * said).sum(0).clamp_min(1e-12).log()


def receraser(task: Task, config: ReceraserConfig | None = None) -> Outcome:
    """Restart the hit clusters' models and fit the attention anew on D_r.

    Args:
        task: the request.
        config: see :class:`ReceraserConfig`.

    Source: Chen et al. 2022, arXiv 2201.06820 (user-based partition).
    """
    config = config or ReceraserConfig()

    def make() -> Shards:
        before = before_deletion(task)
        users, code = np.unique(before.user, return_inverse=True)
        vectors = factors(task.data, before.examples.target, config.width, seed=task.seed)[users]
        shard = balanced(vectors, config.shards, rounds=config.rounds, cap=config.cap, seed=task.seed)
        return Shards(task, before, shard[code], np.zeros(len(code), int), config.epochs_factor)

    def answer(shards: Shards) -> Together:
        model = Attending(shards, config.attention_width, task.seed)
        with torch.enable_grad():
            attend(task, model, config)
        return model

    return serve(task, "receraser", make, answer)


def attend(task: Task, model: Attending, config: ReceraserConfig) -> None:
    """Fit the attention on D_r; the shards stay as they are."""
    for p in model.models.parameters():
        p.requires_grad_(False)
    params = [model.transform, model.query, model.bias]
    stream = Batches(task, task.retain, config.batch_size, 103)

    def gradients(step: int) -> None:
        batch = stream.next()
        logits = answer_logits(model, batch.ids, batch.last, task.answers)
        loss = torch.nn.functional.cross_entropy(logits, batch.label)
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.grad = g

    optimise(params, config.attention_steps, gradients, TuneConfig(lr=config.attention_lr))
    parallel.same(params)
