"""What heads read: attention on the span map, on every family, and a planted head that reads one part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits.reading import WHERE, Reading, attention_reading, token_parts
from made_families import TYPES, lora_on, made_family_model
from made_models import made_model, made_prompts

CLEAN, ENCODER = made_prompts(5)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers


def test_every_token_is_of_one_part():
    for n, part in enumerate(token_parts(CLEAN)):
        spans = CLEAN.spans[CLEAN.spans[:, 0] == n]
        assert len(part) == CLEAN.lengths[n]
        assert (part < 3).sum() == (spans[:, 2] - spans[:, 1]).sum()
        assert {WHERE[k] for k in set(part)} <= set(WHERE) and part[-1] == WHERE.index("frame")


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_shares_are_those_of_the_models_own_weights(model_type, lora):
    model = made_family_model(model_type, WORDS)
    model = lora_on(model) if lora else model
    before = model.config._attn_implementation
    found = attention_reading(model, CLEAN, ANSWERS, batch_size=2)
    assert model.config._attn_implementation == before
    assert not any(m._forward_hooks for m in model.modules())
    np.testing.assert_allclose(found.mass.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(found.tokens.sum(-1), 1, atol=1e-6)
    model.set_attn_implementation("eager")
    decoder = (model.get_base_model() if lora else model).get_decoder()
    n = 3
    ids = torch.from_numpy(CLEAN.ids[CLEAN.offsets[n] : CLEAN.offsets[n + 1]])[None]
    with torch.no_grad():
        weights = decoder(input_ids=ids, output_attentions=True, use_cache=False).attentions
    part = token_parts(CLEAN)[n]
    rows = torch.stack([w[0, :, -1] for w in weights]).flatten(0, 1).numpy()
    want = np.stack([rows[:, part == k].sum(1) for k in range(len(WHERE))], 1)
    np.testing.assert_allclose(found.mass[n], want, atol=1e-5)


def test_a_head_that_looks_everywhere_alike_reads_nothing():
    model = made_model(WORDS)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    found = attention_reading(model, CLEAN, ANSWERS)
    np.testing.assert_allclose(found.mass[:, :4], found.tokens[:, None].repeat(4, 1), atol=1e-6)
    assert all(c["part"] is None for c in found.claims()[:4])


def test_claims_say_how_common_they_are():
    tokens = np.tile([0.3, 0.3, 0.1, 0.3], (10, 1))
    mass = np.tile([0.2, 0.2, 0.5, 0.1], (10, 2, 1))
    mass[:, 1] = tokens
    mass[8:, 0] = [0.4, 0.4, 0.05, 0.15]  # in two prompts the candidate gets less than its share
    one, two = Reading(("a", "b"), WHERE, mass, tokens).claims()
    assert one["part"] == "candidate" and one["prompts"] == pytest.approx(0.8)
    assert one["mass"] == pytest.approx(0.41) and one["low"] < 0.41 < one["high"]
    assert one["tokens"] == pytest.approx(0.1) and sum(one["by_part"].values()) == pytest.approx(1)
    assert two["part"] is None
