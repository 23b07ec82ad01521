"""The matrix products that scores cannot do without, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from curerec.circuits.wiring import weight_of
from curerec.recommender.families import family_of


def products(model: Any, batch: int, length: int, *, edges: bool = False) -> np.ndarray:
    """The matrix products that two forward passes and a backward one cannot do without, and nothing else.

    Of the last layer those of keys and values alone: the rest is needed at one position. No attention, norm,
    activation function, vocabulary, or score.

    Args:
        model: whose shapes they have.
        batch, length: of the prompts.
        edges: also what every head writes and every reader pulls, each formed once, and one product of the
            two a layer of readers.
    """
    family = family_of(model)
    *whole, last = family.layer_list(model)
    paths = {p.path: p.parts for p in family.projections.values()}
    maps = [layer.get_submodule(path) for layer in whole for path in paths]
    maps += [
        last.get_submodule(path) for path, parts in paths.items() if "k_proj" in parts or "v_proj" in parts
    ]
    weights = [weight_of(m) for m in maps]  # [out, in]
    states = {w: torch.ones(batch * length, w) for weight in weights for w in weight.shape}
    for weight in weights:
        for _ in range(2):
            torch.mm(states[weight.shape[1]], weight.T)
        torch.mm(states[weight.shape[0]], weight)
    if edges:
        edge_products(model, batch, length)
    return np.zeros((batch, 1))


def edge_products(model: Any, batch: int, length: int) -> None:
    """What edges take beyond the passes: see :func:`products`."""
    family = family_of(model)
    heads, groups, width = family.heads(model)
    n_layers, d = len(family.layer_list(model)), heads * width
    small, weight = torch.ones(1, batch * length, width), torch.ones(1, width, d)
    wrote = torch.ones(1 + n_layers * (heads + 1), batch, length, d)
    pulled = torch.ones(heads + 2 * groups + 1, batch, length, d)
    for k in range(n_layers - 1):
        first = 1 + k * (heads + 1)
        out = wrote[first : first + heads].flatten(1, 2)
        torch.bmm(small.expand(heads, -1, -1), weight.expand(heads, -1, -1), out=out)
    for k in range(n_layers):
        n = heads + 2 * groups if k < n_layers - 1 else 2 * groups  # of the last layer keys and values
        out = pulled[:n].flatten(1, 2)
        torch.bmm(small.expand(n, -1, -1), weight.expand(n, -1, -1), out=out)
        readers = pulled[: n + (k < n_layers - 1)].flatten(2).permute(1, 2, 0)
        torch.bmm(wrote[: 1 + k * (heads + 1)].flatten(2).transpose(0, 1), readers)
