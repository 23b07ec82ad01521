"""Scorer ``exact``: activation patching, one forward pass a module."""

from __future__ import annotations

from typing import Any

from curerec.circuits.activations import sites_of
from curerec.circuits.passes import Cost, Scores
from curerec.circuits.patching import patched_margins
from curerec.prompts.encoding import Prompts


def score(
    model: Any, clean: Prompts, corrupt: Prompts, answers: tuple[int, int], *, batch_size: int = 64
) -> Scores:
    """``m(x with a_i := a_i(x')) - m(x)`` for every module i.

    Args:
        model, clean, corrupt, answers, batch_size: as for ``atp``.

    Source: Vig et al. 2020, Meng et al. 2022 (causal tracing with counterfactuals); METHOD section 3.
    """
    names = sites_of(model).names
    cost = Cost()
    sets: list[set[str]] = [set(), *({m} for m in names), set(names)]
    runs = patched_margins(model, clean, corrupt, answers, sets, batch_size=batch_size, cost=cost)
    changes = (runs[1:] - runs[0]).T
    return Scores(names, changes[:, :-1].copy(), changes[:, -1].copy(), "exact", cost)
