"""Rolling back: between the base and the fine-tuned model, unit by unit, whatever the adapter."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from curerec.methods.rollback import roll_back
from made_families import TYPES
from made_models import made_encoder
from made_updates import changed, tuned

WORDS = len(made_encoder().tokenizer)


def logits(model):
    ids = torch.arange(1, 13).view(2, 6)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("granularity", ["row", "projection", "head_mlp"])
@pytest.mark.parametrize("model_type", TYPES)
def test_nothing_kept_is_the_base_and_all_kept_the_model(model_type, lora, granularity):
    base, model = tuned(lora, model_type)
    units, deltas = changed(base, model, granularity)
    for share, wanted in ((0.0, base), (1.0, model)):
        new = copy.deepcopy(model)
        roll_back(new, units, deltas, np.full(len(units.names), share))
        torch.testing.assert_close(logits(new), logits(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
def test_only_the_named_units_move(lora):
    base, model = tuned(lora)
    units, deltas = changed(base, model)
    kept = np.ones(len(units.names))
    some = [k for k, name in enumerate(units.names) if "q_proj" in name][:3]
    kept[some] = 0.25
    new = copy.deepcopy(model)
    roll_back(new, units, deltas, kept)
    before, after = dict(model.named_parameters()), dict(new.named_parameters())
    for branch in units.branches:
        moved = (before[branch.weight] != after[branch.weight]).reshape(len(branch.unit), -1).any(1)
        assert moved.tolist() == np.isin(branch.unit, some).tolist()
        if branch.factor:
            assert torch.equal(before[branch.factor], after[branch.factor])


def test_half_way_is_the_mean_of_base_and_model_even_where_weights_are_tied():
    base, model = tuned(lora=False)
    units, deltas = changed(base, model)
    new = copy.deepcopy(model)
    roll_back(new, units, deltas, np.full(len(units.names), 0.5))
    old = dict(base.named_parameters())
    for (name, p), q in zip(model.named_parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(q, (p + old[name]) / 2)
