"""How hard each forget example is to unlearn without hurting the retained ones."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from curerec.methods.batches import Batches
from curerec.methods.descent import frozen_logits
from curerec.methods.loop import free, tuned_names
from curerec.methods.task import Task
from curerec.recommender.families import family_of
from curerec.recommender.score import answer_logits

BATCH = 128


def gradient_conflict(task: Task, size: int, *, step: float = 1e-2) -> np.ndarray:
    """How much ascending on each forget example raises the retain loss: ``<g_i, g_r> / |g_r|``.

    It is the derivative of example i's cross-entropy along the retain gradient, so a central difference of
    two forward passes gives it for all examples at once; gradients would take a backward pass an example.

    Args:
        task: the request.
        size: retain examples that g_r is taken on.
        step: of the difference, a length in weight space.

    Returns:
        float64 [n_forget], nats a unit of length.

    Source: Yang et al. 2025, arXiv 2508.15263 (gradient unlearning difficulty); the central
    difference is this project's.
    """
    model = task.copy_of_model()
    params = free(model, tuned_names(model))
    total = [torch.zeros_like(p, dtype=torch.float32) for p in params]
    retain = Batches(task, task.sample(task.retain, size, 63), BATCH, 0)
    for start in range(0, len(retain.examples), BATCH):
        batch = retain.at(np.arange(start, min(start + BATCH, len(retain.examples))))
        logits = answer_logits(model, batch.ids, batch.last, task.answers, runtime=task.runtime)
        loss = F.cross_entropy(logits, batch.label, reduction="sum")
        for t, g in zip(total, torch.autograd.grad(loss, params), strict=True):
            t += g.float()
    norm = float(torch.stack([t.square().sum() for t in total]).sum().sqrt()) or 1.0
    before = [p.detach().clone() for p in params]
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, b, t in zip(params, before, total, strict=True):
                p.copy_(b.float() + sign * step / norm * t)
        sides.append(_losses(task, model))
    return (sides[0] - sides[1]) / (2 * step)


def _losses(task: Task, model: torch.nn.Module) -> np.ndarray:
    forget = Batches(task, task.forget, BATCH, 0)
    out = []
    for start in range(0, len(task.forget), BATCH):
        batch = forget.at(np.arange(start, min(start + BATCH, len(task.forget))))
        logits = frozen_logits(model, batch, task.answers)
        out.append(F.cross_entropy(logits, batch.label, reduction="none").double().cpu().numpy())
    return np.concatenate(out)


def nearness(task: Task, size: int) -> np.ndarray:
    """Mean cosine of each forget example's state at the answer position to those of retain examples.

    Args:
        task: the request.
        size: retain examples.

    Returns:
        float64 [n_forget], -1 to 1.

    Source: Yang et al. 2025, arXiv 2508.15263 (embedding unlearning difficulty).
    """
    forget = Batches(task, task.forget, BATCH, 0)
    retain = Batches(task, task.sample(task.retain, size, 63), BATCH, 0)
    states = [_directions(task, part) for part in (forget, retain)]
    return states[0] @ states[1].mean(0)


@torch.no_grad()
def _directions(task: Task, part: Batches) -> np.ndarray:
    """Last hidden states at the answer position, scaled to length 1, float64 [n, d_model]."""
    decoder = family_of(task.original.model).decoder(task.original.model)
    out = []
    for start in range(0, len(part.examples), BATCH):
        batch = part.at(np.arange(start, min(start + BATCH, len(part.examples))))
        hidden = decoder(input_ids=batch.ids, use_cache=False).last_hidden_state
        state = hidden[torch.arange(len(batch.last), device=hidden.device), batch.last].double()
        out.append(F.normalize(state, dim=-1).cpu().numpy())
    return np.concatenate(out)
