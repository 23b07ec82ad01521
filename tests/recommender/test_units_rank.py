"""Rank-one terms: each row of A has a unit, and a unit's score is the slope of scaling its term."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits.adapter import adapter_scores
from curerec.errors import ModelError
from curerec.recommender.families import family_of
from curerec.recommender.score import answer_logits, to_batch
from curerec.recommender.units import units_of
from made_families import TYPES, lora_on, made_family_model
from made_models import made_model, made_prompts, with_lora

PROMPTS, ENCODER = made_prompts(4)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers


@pytest.mark.parametrize("model_type", TYPES)
def test_the_terms_of_a_branch_add_up_to_the_branch(model_type):
    model = lora_on(made_family_model(model_type, WORDS), r=3)
    fine, coarse = units_of(model, "rank"), units_of(model, "projection")
    scores = adapter_scores(model, PROMPTS, ANSWERS, fine, {})
    branches = [b.weight for b in coarse.branches]
    assert [b.factor for b in fine.branches] == branches and len(fine.names) == 3 * len(branches)
    assert fine.granularity == "rank" and fine.names[0].endswith(".rank.0")
    # Every term serves the block that its map is in; without one `cure` would freeze it.
    maps = {p.parts[0] if len(p.parts) == 1 else n: p for n, p in family_of(model).projections.items()}
    assert [p.block for p in fine.places] == [maps[p.module].block for p in fine.places]
    assert {p.block for p in fine.places} == {"attn", "mlp"}
    # A fused map has units of its own for q, k and v: compare the sums over a branch.
    whole = adapter_scores(model, PROMPTS, ANSWERS, coarse, {})
    np.testing.assert_allclose(scores.sum(1), whole.sum(1), atol=1e-4)
    assert np.abs(scores).max(0).min() > 0


def test_a_term_is_worth_what_scaling_its_row_does():
    model = with_lora(made_model(WORDS))
    units = units_of(model, "rank")
    k = units.names.index("layers.1.v_proj.rank.2")
    got = adapter_scores(model, PROMPTS, ANSWERS, units, {})[:, k]
    branch = next(b for b in units.branches if k in b.unit)
    row = model.get_parameter(branch.weight)
    ids, last = to_batch(PROMPTS, np.arange(len(PROMPTS)), torch.device("cpu"))
    label = torch.from_numpy(PROMPTS.label.astype(np.int64))
    loss = []
    with torch.no_grad():
        for factor in (0.99, 1.01 / 0.99):
            row[2] *= factor
            z = answer_logits(model, ids, last, ANSWERS)
            loss.append(torch.nn.functional.cross_entropy(z, label, reduction="none").numpy())
    np.testing.assert_allclose(got, (loss[0] - loss[1]) / 0.02, atol=2e-4, rtol=2e-2)


def test_without_an_adapter_there_are_none():
    with pytest.raises(ModelError, match=r"no rank-one terms.*granularity row"):
        units_of(made_model(WORDS), "rank")
