"""Units of the finest LoRA granularity: one rank-one term of one branch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from curerec.errors import ModelError
from curerec.recommender.families import family_of
from curerec.recommender.units import Branch, Place, Units, units_of


def rank_units(model: Any) -> Units:
    """Rank-one terms ``B[:, r] A[r, :]`` of every LoRA branch, a unit each.

    A unit owns row r of A and, since they do nothing without it and it nothing without them, column r of B.

    Args:
        model: PEFT-wrapped decoder of a known family.

    Returns:
        Units named ``layers.L.PROJECTION.rank.R``, comparable within a projection.

    Raises:
        ModelError: the model has no LoRA adapter.

    Source: METHOD section 1, granularity ``rank``.
    """
    if not hasattr(model, "peft_config"):
        raise ModelError(
            "has no LoRA adapter, so no rank-one terms",
            where="granularity rank",
            mend="Use the granularity row, projection or head_mlp",
        )
    family, coarse = family_of(model), units_of(model, "projection")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: list[str] = []
    places: list[Place] = []
    branches: list[Branch] = []
    for branch in coarse.branches:
        assert branch.factor is not None  # an adapter changes nothing but its own branches
        layer = coarse.places[branch.unit[0]].layer
        # A fused map has one adapter for queries, keys and values: its terms bear the name of the map.
        name, projection = next(
            (n, p) for n, p in family.projections.items() if branch.module.endswith(f".{p.path}")
        )
        short = projection.parts[0] if len(projection.parts) == 1 else name
        rank = parameters[branch.factor].shape[0]
        owner = np.arange(len(names), len(names) + rank)
        rows = replace(branch, weight=branch.factor, factor=branch.weight, dim=0, transposed=False)
        branches.append(replace(rows, unit=owner, paired=True))
        names += [f"layers.{layer}.{short}.rank.{r}" for r in range(rank)]
        places += [Place(layer, short, None, projection.block)] * rank
    types = np.asarray([p.module for p in places], dtype=object)
    return Units(tuple(names), tuple(places), tuple(branches), "rank", types)
