"""Scorer ``adapter`` by head and MLP: what fine-tuning stored there is worth to the answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from curerec.circuits.activations import sites_of
from curerec.circuits.adapter import adapter_scores, weight_deltas
from curerec.circuits.passes import Cost, Scores, check_aligned
from curerec.errors import ConfigError
from curerec.prompts.encoding import Prompts
from curerec.recommender.units import units_of


def score(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    base_state: dict[str, torch.Tensor] | None = None,
    among: Collection[str] | None = None,
    batch_size: int = 64,
) -> Scores:
    """First-order change of the margin if a module's change by fine-tuning were removed, [n, modules].

    The corruption needs no pair, so of ``corrupt`` only the lengths are read: what another scorer refuses is
    refused here as well. Keys and values that heads share count with the group's first head.

    Args:
        model: fine-tuned decoder.
        clean: [n] prompts.
        corrupt: [n] prompts of the same lengths.
        answers: token ids of (no, yes).
        base_state: state dict before fine-tuning; needed unless the model has a LoRA adapter.
        among: modules to score; None: all.
        batch_size: prompts a pass.

    Raises:
        ConfigError: a fully fine-tuned model without ``base_state``.
        PromptError: pairs are missing or do not align.
        ModelError: a single prompt does not fit in memory.

    Source: METHOD section 3, scorer ``adapter``.
    """
    if base_state is None and not hasattr(model, "peft_config"):
        raise ConfigError(
            "a fully fine-tuned model says nothing of what it was before",
            where="scorer adapter",
            mend="Pass base_state, the weights before fine-tuning",
        )
    check_aligned(clean, corrupt)
    units = units_of(model, "head_mlp")
    deltas = weight_deltas(model, base_state or {}, units)
    cost = Cost()
    per_unit = adapter_scores(
        model, clean, answers, units, deltas, batch_size=batch_size, objective="margin", cost=cost
    )
    names = sites_of(model).names
    column = {name: k for k, name in enumerate(names)}
    values = np.zeros((len(clean), len(names)), per_unit.dtype)
    for k, name in enumerate(units.names):  # embeddings and norms are no modules of the circuit
        if name in column:
            values[:, column[name]] = per_unit[:, k]
    found = Scores(names, values, None, "adapter", cost)
    return found if among is None else found.among(among)
