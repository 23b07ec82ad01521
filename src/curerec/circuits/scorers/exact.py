"""Scorer ``exact``: activation patching, one forward pass a module."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from curerec.circuits.activations import sites_of
from curerec.circuits.passes import Cost, Scores
from curerec.circuits.patching import patched_margins
from curerec.prompts.encoding import Prompts


def score(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    among: Collection[str] | None = None,
    batch_size: int = 64,
) -> Scores:
    """``m(x with a_i := a_i(x')) - m(x)`` for every module i.

    Args:
        model, clean, corrupt, answers, among, batch_size: as for ``atp``; a pass a module that is scored.

    Source: Vig et al. 2020, Meng et al. 2022 (causal tracing with counterfactuals); METHOD section 3.
    """
    every = sites_of(model).names
    names = every if among is None else tuple(name for name in every if name in among)
    cost = Cost()
    # Patched all together they are what the embedding output is.
    together = [set(every)] if among is None else []
    sets: list[set[str]] = [set(), *({m} for m in names), *together]
    runs = patched_margins(model, clean, corrupt, answers, sets, batch_size=batch_size, cost=cost)
    changes = (runs[1:] - runs[0]).T
    embedding = changes[:, -1].copy() if together else None
    return Scores(names, changes[:, : len(names)].copy(), embedding, "exact", cost)
