"""CAU: three objectives weighted by min-norm at each step, easy samples first."""

from __future__ import annotations

from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from curerec.methods.cau.difficulty import gradient_conflict, nearness
from curerec.methods.loop import Descent, Log, LoopConfig, descend, outcome
from curerec.methods.losses import kl_to
from curerec.methods.task import Task
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [1e-4, 3e-4, 1e-3], "difficulty": ["gradient", "embedding"]}


class CauConfig(LoopConfig):
    """The loop, the weights' floor and the curriculum."""

    lr: float = Field(3e-4, gt=0)
    difficulty: Literal["gradient", "embedding"] = "gradient"
    order: Literal["hard", "soft"] = Field("hard", description="strictly from easy to hard, or drawn so")
    temperature: float = Field(0.5, gt=0, description="of the soft order; difficulty has deviation 1")
    floor: float = Field(
        0.1, ge=0, lt=1 / 3, description="least weight of each objective: the KL is stationary at theta_o"
    )
    reference_size: int = Field(256, gt=0, description="retain examples that difficulty is measured by")


def min_norm(gram: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Weights of the shortest vector among the convex combinations of k vectors, each at least ``floor``.

    Exact: the best point of every face of the simplex is found, and the shortest kept (k is small).

    Args:
        gram: inner products, float64 [k, k].
        floor: least weight, below 1 / k.

    Returns:
        float64 [k], summing to 1.

    Source: Desideri 2012 (MGDA); Sener and Koltun 2018, arXiv 1810.04650, eq. 3.
    """
    k = len(gram)
    # With w = floor + (1 - k floor) v the combination is that of shifted vectors with free weights v.
    shift = np.full((k, k), floor) + (1 - k * floor) * np.eye(k)
    moved = shift @ gram @ shift.T
    best, least = np.full(k, 1 / k), np.inf
    for size in range(1, k + 1):
        for face in combinations(range(k), size):
            inside = moved[np.ix_(face, face)]
            bordered = np.block([[2 * inside, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            scale = max(float(np.trace(inside)), 1e-300)
            bordered[:size, :size] /= scale
            v = np.linalg.lstsq(bordered, np.r_[np.zeros(size), 1.0], rcond=None)[0][:size]
            if (v >= -1e-12).all():
                v = np.clip(v, 0, None) / np.clip(v, 0, None).sum()
                length = float(v @ inside @ v)
                if length < least:
                    least, best = length, np.zeros(k)
                    best[list(face)] = v
    return shift.T @ best


def curriculum(
    difficulty: np.ndarray, order: str, temperature: float, rng: np.random.Generator
) -> np.ndarray:
    """An epoch's order of the forget examples, int [n].

    Args:
        difficulty: float [n].
        order: ``hard``: from easy to hard; ``soft``: drawn without replacement, an example as likely as
            ``exp(-difficulty / temperature)``, difficulty scaled to deviation 1.
        temperature: of ``soft``.
        rng: of ``soft``.
    """
    if order == "hard":
        return np.argsort(difficulty, kind="stable")
    scaled = difficulty / (difficulty.std() or 1.0)
    # Adding Gumbel noise to log-weights and sorting is drawing without replacement.
    return np.argsort(-(-scaled / temperature + rng.gumbel(size=len(scaled))), kind="stable")


def cau(task: Task, config: CauConfig | None = None) -> Outcome:
    """Ascend on D_f, follow answers and theta_o on D_r; weights by min-norm, batches from easy to hard.

    Args:
        task: the request.
        config: see :class:`CauConfig`.

    Source: Yang et al. 2025, arXiv 2508.15263.
    """
    config = config or CauConfig()
    with task.clock.stage("difficulty"):
        measure = gradient_conflict if config.difficulty == "gradient" else nearness
        difficulty = measure(task, config.reference_size)

    def direction(descent: Descent, step: int) -> tuple[list[torch.Tensor], Log]:
        losses = [] if descent.resting else [-descent.loss(descent.forget.next())]
        batch = descent.retain.next()
        logits = descent.logits(batch)
        losses += [F.cross_entropy(logits, batch.label), kl_to(logits, descent.original(batch))]
        grads = [
            torch.autograd.grad(loss, descent.params, retain_graph=k == len(losses) - 2)
            for k, loss in enumerate(losses)
        ]
        gram = np.asarray(
            [
                [
                    float(sum((a.double() * b.double()).sum() for a, b in zip(x, y, strict=True)))
                    for y in grads
                ]
                for x in grads
            ]
        )
        weight = min_norm(gram, config.floor)
        found = [
            sum(float(w) * g for w, g in zip(weight, parts, strict=True))
            for parts in zip(*grads, strict=True)
        ]
        names = ("forget", "retain", "kl")[-len(losses) :]
        log = {f"{n}_loss": x.detach() for n, x in zip(names, losses, strict=True)}
        return found, log | {f"{n}_weight": float(w) for n, w in zip(names, weight, strict=True)}

    def order(rng: np.random.Generator) -> np.ndarray:
        return curriculum(difficulty, config.order, config.temperature, rng)

    return outcome(task, "cau", descend(task, config, direction, order=order))
