"""The arithmetic of a rank-one edit: keys, their covariance, and the change with the least side effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.score import by_length, to_batch

RIDGE = 1e-4  # added to the covariance's diagonal, in means of it: keys of few prompts do not span the space


class Site:
    """A linear map seen as a memory: what enters at a position is a key, what leaves a value."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.device = next(module.parameters()).device

    @contextmanager
    def reading(self, positions: torch.Tensor) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Notes (keys [n, in], values [n, out]) at one position a prompt, float32."""
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            rows = torch.arange(len(positions), device=output.device)
            seen.append((args[0][rows, positions].float(), output[rows, positions].float()))

        handle = self.module.register_forward_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()

    @contextmanager
    def adding(self, change: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
        """Adds a vector to what leaves at one position a prompt."""

        def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            there = torch.zeros(output.shape[:2], device=output.device, dtype=output.dtype)
            there[torch.arange(len(positions), device=output.device), positions] = 1
            return output + there[..., None] * change.to(output.dtype)

        handle = self.module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


@torch.no_grad()
def covariance(model: Any, site: Site, prompts: Prompts, batch_size: int) -> torch.Tensor:
    """Uncentred covariance of the keys of all tokens of prompts, float64 [in, in], with a small ridge.

    Args:
        model: holds the site.
        site: the map.
        prompts: [n]; padding is left out.
        batch_size: prompts a pass.

    Source: Meng et al. 2022, arXiv 2202.05262, section 3.1 (C = K K^T), on retained prompts instead
    of Wikipedia.
    """
    decoder = family_of(model).decoder(model)
    total: Any = 0
    count = 0
    for index in by_length(prompts, batch_size):
        ids, last = to_batch(prompts, index, site.device)
        inside = torch.arange(ids.shape[1], device=ids.device)[None] <= last[:, None]

        def hook(module: Any, args: Any, output: torch.Tensor, inside: torch.Tensor = inside) -> None:
            nonlocal total
            keys = args[0][inside].double()
            total = total + keys.T @ keys

        handle = site.module.register_forward_hook(hook)
        try:
            decoder(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        count += int(inside.sum())
    spread = total / count
    return spread + RIDGE * spread.diagonal().mean() * torch.eye(len(spread), device=spread.device)


def rank_one(
    change: torch.Tensor, key: torch.Tensor, spread: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(left, right) of the edit ``left right^T`` that makes the map write ``W k* + change`` for k*.

    ``(v* - W k*) (C^-1 k*)^T / (k*^T C^-1 k*)``: of all edits that do so, the one that moves the values of
    keys distributed as C least.

    Args:
        change: v* - W k*, [out].
        key: k*, [in].
        spread: C, float64 [in, in].

    Returns:
        float64 [out] and [in].

    Source: Meng et al. 2022, arXiv 2202.05262, eq. 2.
    """
    k = key.double()
    solved = torch.linalg.solve(spread, k)
    return change.double(), solved / (k @ solved)
