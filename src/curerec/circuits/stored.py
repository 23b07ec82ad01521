"""What fine-tuning stored in each update unit, with intervals: the units of ``circuit.json``."""

from __future__ import annotations

from typing import Any

import torch

from curerec.circuits.adapter import adapter_scores, weight_deltas
from curerec.circuits.adapter_exact import exact_adapter
from curerec.circuits.exchange import UnitScore
from curerec.circuits.stability import bootstrap_intervals
from curerec.errors import ConfigError
from curerec.prompts.encoding import Prompts
from curerec.recommender.units import Granularity, units_of

EXACT = 30  # units re-scored exactly, the largest by first order: those that the page shows


def stored_in_units(
    model: Any,
    prompts: Prompts,
    answers: tuple[int, int],
    granularity: Granularity,
    *,
    base_state: dict[str, torch.Tensor] | None = None,
    exact: int = EXACT,
    draws: int = 200,
    batch_size: int = 32,
    seed: int = 0,
) -> list[UnitScore]:
    """First-order change of the margin if a unit's change by fine-tuning were removed; the largest exactly.

    Args:
        model: fine-tuned decoder.
        prompts: [n]; no counterfactual is needed.
        answers: token ids of (no, yes).
        granularity: of the units.
        base_state: state dict before fine-tuning; needed unless the model has a LoRA adapter.
        exact: so many units are also scored by a pass without their change.
        draws: bootstrap resamples of the prompts.
        batch_size: prompts a pass; halved where memory runs out.
        seed: of the resamples.

    Returns:
        All units in the order of :func:`curerec.recommender.units.units_of`, logits; negative where what
        fine-tuning stored there supports the answer.

    Raises:
        ConfigError: a fully fine-tuned model without ``base_state``.
        ModelError: rank-one terms of a model without an adapter, or one prompt does not fit in memory.

    Source: METHOD section 3, scorer ``adapter``.
    """
    if base_state is None and not hasattr(model, "peft_config"):
        raise ConfigError(
            "a fully fine-tuned model says nothing of what it was before",
            where=f"units {granularity}",
            mend="Pass base_state, the weights before fine-tuning",
        )
    units = units_of(model, granularity)
    deltas = weight_deltas(model, base_state or {}, units)
    scores = adapter_scores(model, prompts, answers, units, deltas, batch_size=batch_size, objective="margin")
    low, high = bootstrap_intervals(scores, draws=draws, seed=seed)
    again = exact_adapter(
        model, prompts, answers, units, deltas, most=exact, scores=scores, batch_size=batch_size
    )
    measured = dict(zip(again.index.tolist(), again.values.mean(0).tolist(), strict=True))
    mean = scores.mean(0)
    return [
        UnitScore(
            name=name, score=float(mean[k]), low=float(low[k]), high=float(high[k]), exact=measured.get(k)
        )
        for k, name in enumerate(units.names)
    ]
