"""CAU: three objectives weighted by min-norm at each step, easy samples first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from curerec.methods.cau.difficulty import gradient_conflict, nearness
from curerec.methods.descent import Descent, Log
from curerec.methods.loop import LoopConfig, descend, outcome
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


def gram_of(vectors: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """Inner products of vectors that lie in parts, summed in double precision, float64 [k, k]."""
    found: dict[tuple[int, int], torch.Tensor] = {}
    for (i, x), (j, y) in combinations_with_replacement(enumerate(vectors), 2):
        parts = [(a.double() * b.double()).sum() for a, b in zip(x, y, strict=True)]
        found[i, j] = found[j, i] = sum(parts[1:], parts[0])
    k = len(vectors)
    return torch.stack([found[i, j] for i in range(k) for j in range(k)]).view(k, k)


def min_norm(gram: torch.Tensor, floor: float = 0.0) -> torch.Tensor:
    """Weights of the shortest vector among the convex combinations of vectors, each at least ``floor``.

    In closed form and on the device: the point nearest to 0 on the line or plane through every face of the
    simplex is found, and the shortest of those inside their face kept. Of vectors on one line the plane
    tells nothing, and a side has the shortest.

    Args:
        gram: inner products of two or three vectors, float64 [k, k].
        floor: least weight, below 1 / k.

    Returns:
        float64 [k], summing to 1, on the device of ``gram``.

    Source: Desideri 2012 (MGDA); Sener and Koltun 2018, arXiv 1810.04650, eq. 3.
    """
    k = len(gram)
    # With w = floor + (1 - k floor) v the combination is that of shifted vectors with free weights v.
    corners = torch.eye(k, dtype=gram.dtype, device=gram.device)
    shift = floor + (1 - k * floor) * corners
    moved = shift @ gram @ shift
    g = [row.unbind() for row in moved.unbind()]
    found = [*corners]
    for i, j in combinations(range(k), 2):
        found.append((g[j][j] - g[i][j]) * corners[i] + (g[i][i] - g[i][j]) * corners[j])
    if k == 3:  # sums of the rows of the adjugate, which G^-1 1 is proportional to
        found.append(
            torch.stack(
                [
                    (g[j][j] - g[i][j]) * (g[m][m] - g[i][m]) - (g[j][m] - g[i][j]) * (g[j][m] - g[i][m])
                    for i, j, m in ((0, 1, 2), (1, 2, 0), (2, 0, 1))
                ]
            )
        )
    v = torch.stack(found)
    v = v / v.sum(1, keepdim=True)  # nan where a face is less than one, which is then not inside
    inside = (v >= -1e-12).all(1)
    v = v.clamp_min(0)
    v = v / v.sum(1, keepdim=True)
    length = torch.where(inside, (v @ moved * v).sum(1), torch.inf)
    return shift @ v.index_select(0, length.argmin()[None])[0]


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
        losses += [F.cross_entropy(logits, batch.label), kl_to(logits, descent.held_to(batch))]
        # The last two are of one pass.
        grads = [descent.grad(loss, again=k == len(losses) - 2) for k, loss in enumerate(losses)]
        weight = min_norm(gram_of(grads), config.floor).unbind()
        found = [sum(w * g for w, g in zip(weight, parts, strict=True)) for parts in zip(*grads, strict=True)]
        names = ("forget", "retain", "kl")[-len(losses) :]
        log = {f"{n}_loss": x.detach() for n, x in zip(names, losses, strict=True)}
        return found, log | {f"{n}_weight": w for n, w in zip(names, weight, strict=True)}

    def order(rng: np.random.Generator) -> np.ndarray:
        return curriculum(difficulty, config.order, config.temperature, rng)

    return outcome(task, "cau", descend(task, config, direction, order=order))
