"""An adapter folded into the weights while many prompts are scored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from curerec.recommender.lean import hooked
from curerec.recommender.spread import PRODUCTS, is_spread


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """Branches ``W x + s B (A x)`` are computed as ``(W + s B A) x`` inside.

    Afterwards the weights are the old tensors again, bit for bit. Only what is exact up to the rounding of
    float32: not with weights in half precision or few bits, not while an adapter is switched off, not in
    training, not where something listens, not of branches that are more than that product, and not of several
    models that answer together.
    """
    layers = [m for m in model.modules() if hasattr(m, "lora_B") and hasattr(m, "get_delta_weight")]
    usable = all(
        type(m.get_base_layer()).__name__ in PRODUCTS
        and m.get_base_layer().weight.dtype in (torch.float32, torch.float64)
        and not (m.merged_adapters or m.disable_adapters or m.training)
        and list(m.active_adapters) == list(m.lora_A)
        and not any(any(getattr(m, more, {}).values()) for more in ("use_dora", "lora_variant", "lora_bias"))
        and not hooked(m)
        and not is_spread(m.get_base_layer())
        for m in layers
    )
    # Models that answer together share their frozen weights, and may scale branches while they answer.
    shared = len({id(m.get_base_layer().weight) for m in layers}) < len(layers)
    if not layers or not usable or shared or hasattr(model, "answer_logits"):
        yield
        return
    before = [(m, m.get_base_layer().weight.data) for m in layers]
    try:
        with torch.no_grad():
            for m, weight in before:
                delta = sum(m.get_delta_weight(name) for name in m.active_adapters)
                m.get_base_layer().weight.data = weight + delta
                m.merged_adapters.extend(m.active_adapters)
        yield
    finally:
        for m, weight in before:
            m.get_base_layer().weight.data = weight
            m.merged_adapters.clear()
