"""The answer's two logits are those of the whole model, however the prompts are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.recommender.score import answer_logits, by_length, p_yes, score, to_batch
from made_models import made_model, made_prompts, with_lora

PROMPTS, ENCODER = made_prompts(11)
WORDS = len(ENCODER.tokenizer)
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_the_same_as_the_whole_forward_pass(kind, tied, lora):
    model = made_model(WORDS, kind, tied=tied)
    model = with_lora(model) if lora else model
    for index in by_length(PROMPTS, 4):
        ids, last = to_batch(PROMPTS, index, CPU)
        with torch.no_grad():
            got = answer_logits(model, ids, last, ENCODER.answers)
            whole = model(input_ids=ids).logits[torch.arange(len(ids)), last][:, list(ENCODER.answers)]
            embeds = model.get_input_embeddings()(ids)
            by_embedding = answer_logits(model, ids, last, ENCODER.answers, inputs_embeds=embeds)
        torch.testing.assert_close(got, whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(by_embedding, got, atol=1e-6, rtol=1e-6)
    assert got.dtype == torch.float32


def test_the_adapter_is_read_unless_it_is_off():
    model = made_model(WORDS)
    base = score(model, PROMPTS, ENCODER.answers)
    tuned = with_lora(model)
    assert np.abs(score(tuned, PROMPTS, ENCODER.answers) - base).max() > 1e-2
    with tuned.disable_adapter():
        np.testing.assert_allclose(score(tuned, PROMPTS, ENCODER.answers), base, atol=1e-6)


def test_a_bias_and_a_soft_cap_of_the_output_are_read():
    model = made_model(WORDS, tied=False)
    model.lm_head = torch.nn.Linear(16, WORDS)
    ids, last = to_batch(PROMPTS, np.arange(4), CPU)
    with torch.no_grad():
        whole = model(input_ids=ids).logits[torch.arange(4), last][:, list(ENCODER.answers)]
        torch.testing.assert_close(
            answer_logits(model, ids, last, ENCODER.answers), whole, atol=1e-5, rtol=1e-5
        )
        model.config.final_logit_softcapping = 2.0
        capped = answer_logits(model, ids, last, ENCODER.answers)
    torch.testing.assert_close(capped, 2 * torch.tanh(whole / 2), atol=1e-5, rtol=1e-5)


def test_padding_on_the_right_does_not_matter():
    model = made_model(WORDS)
    alone = np.concatenate([score(model, PROMPTS.take(np.array([n])), ENCODER.answers) for n in range(11)])
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), alone, atol=1e-5)
    ids, last = to_batch(PROMPTS, np.arange(11), CPU)
    for filler in (0, WORDS - 1):
        longer = torch.cat([ids, torch.full((11, 9), filler)], 1)
        with torch.no_grad():
            got = answer_logits(model, longer, last, ENCODER.answers).numpy()
        np.testing.assert_allclose(got, alone, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_scores_come_back_in_the_order_of_the_prompts(batch_size):
    model = made_model(WORDS)
    want = score(model, PROMPTS, ENCODER.answers)
    order = np.random.default_rng(0).permutation(11)
    np.testing.assert_allclose(
        score(model, PROMPTS.take(order), ENCODER.answers, batch_size=batch_size), want[order], atol=1e-5
    )
    assert len(set(PROMPTS.lengths)) > 2
    assert score(model, PROMPTS.take(np.zeros(0, int)), ENCODER.answers).shape == (0, 2)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_given_back_also_after_an_error(training):
    model = with_lora(made_model(WORDS)).train(training)
    score(model, PROMPTS, ENCODER.answers)
    assert model.training is training
    with pytest.raises(IndexError):
        score(model, PROMPTS, (WORDS, WORDS + 1))
    assert model.training is training


def test_batches_are_of_like_length_longest_first_and_each_prompt_once():
    seen = list(by_length(PROMPTS, 4))
    assert sorted(np.concatenate(seen)) == list(range(11))
    lengths = PROMPTS.lengths[np.concatenate(seen)]
    assert (np.diff(lengths) <= 0).all()


def test_the_probability_of_yes_is_exact_at_both_ends():
    logits = np.asarray([[0, 0], [0, 50], [50, 0], [0, 800], [800, 0], [1, 2]], np.float32)
    got = p_yes(logits)
    np.testing.assert_allclose(got, [0.5, 1, np.exp(-50.0), 1, 0, 1 / (1 + np.exp(-1.0))], rtol=1e-12)
    np.testing.assert_allclose(p_yes(logits[:, ::-1])[:4], 1 - got[:4], atol=1e-15)
