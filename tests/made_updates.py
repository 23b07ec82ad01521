"""Models that were fine-tuned by chance, their units, roles and gradients: what updates are tested on."""

from __future__ import annotations

import copy

import numpy as np
import torch

from curerec.circuits.adapter import weight_deltas
from curerec.recommender.units import units_of
from made_families import lora_on, made_family_model
from made_models import made_encoder

WORDS = len(made_encoder().tokenizer)


def setting(granularity, lora, *, seed=0, scale=1.0, kind="llama"):
    """Units with random roles, and random gradients of all their parameters."""
    model = made_family_model(kind, WORDS)
    model = lora_on(model) if lora else model
    units = units_of(model, granularity)
    rng = np.random.default_rng(seed)
    role = torch.from_numpy(rng.integers(0, 4, len(units.names)))
    parameters = dict(model.named_parameters())
    names = sorted({n for b in units.branches for n in (b.weight, b.factor) if n})
    forget, retain = (
        {n: torch.from_numpy(scale * rng.normal(size=tuple(parameters[n].shape))).float() for n in names}
        for _ in range(2)
    )
    return units, role, forget, retain


def tuned(lora, model_type="llama"):
    """A base, and a model whose every branch was changed."""
    base = made_family_model(model_type, WORDS)
    model = lora_on(copy.deepcopy(base)) if lora else copy.deepcopy(base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not lora or "lora_" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return base, model


def changed(base, model, granularity="row"):
    units = units_of(model, granularity)
    lora = hasattr(model, "peft_config")
    return units, {} if lora else weight_deltas(model, base.state_dict(), units)
