"""What heads read: attention on the span map, on every family, and a planted head that reads one part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec.circuits.reading import WHERE, Reading, attention_reading, token_parts
from curerec.prompts.templates import PARTS
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


def planted_reader(head, marked):
    """A model whose head ``head`` of layer 0 looks at one token alone, and whose other heads of that layer
    look everywhere alike: the token has a feature of its own, which is a key, and every token asks for it.

    The slowest pair of the rotary embedding carries it: over a prompt's length it hardly turns.
    """
    slow = {"rope_type": "default", "rope_theta": 1e8}
    model = made_model(WORDS, tied=False, rope_parameters=slow)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[:, 0], table[:, 1] = 0.0, 1.0  # the marked token's own feature; what all have
        table[marked, 0] = 1.0
        model.model.layers[0].input_layernorm.weight.fill_(1.0)
        attention.q_proj.weight.zero_()
        attention.k_proj.weight.zero_()
        attention.q_proj.weight[4 * head + 1, 1] = 30.0
        attention.k_proj.weight[4 * (head // 2) + 1, 0] = 30.0
    return model


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("head", [0, 3])
def test_a_planted_head_reads_its_part_and_no_other_does(part, head):
    clean, _ = made_prompts(24)
    marked, ids = max(set(range(WORDS)) - set(clean.ids.tolist())), clean.ids.copy()
    for n, start, stop, _, of in clean.spans:
        if PARTS[of] == part:
            ids[clean.offsets[n] + start : clean.offsets[n] + stop] = marked
    found = attention_reading(planted_reader(head, marked), replace(clean, ids=ids), ANSWERS)
    claims = found.claims()[:4]
    assert [c["part"] for c in claims] == [part if h == head else None for h in range(4)]
    has_it = np.asarray([(place == PARTS.index(part)).any() for place in token_parts(clean)])
    np.testing.assert_allclose(found.mass[has_it, head, PARTS.index(part)], 1, atol=1e-3)
    assert claims[head]["prompts"] == pytest.approx(has_it.mean()) and has_it.mean() > 0.5
    assert claims[head]["low"] <= claims[head]["mass"] <= claims[head]["high"]
    assert claims[head]["mass"] == pytest.approx(has_it.mean(), abs=0.05)


@pytest.mark.slow
def test_of_three_parts_one_is_the_largest_by_chance():
    """Heads that prefer none: a claim about the largest of three is made of hardly any."""
    rng = np.random.default_rng(1)
    tokens = np.full((100, 4), 0.25)
    mass = tokens[:, None] + 0.05 * rng.normal(size=(100, 400, 4))
    found = Reading(tuple(f"h{k}" for k in range(400)), WHERE, mass, tokens).claims()
    assert np.mean([c["part"] is not None for c in found]) < 0.05
