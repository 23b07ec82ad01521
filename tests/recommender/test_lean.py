"""A pass that leaves out what the answer does not need gives answers and gradients of the whole pass."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from curerec.recommender.families import family_of
from curerec.recommender.lean import answer_only, can_be_lean
from curerec.recommender.score import answer_logits, score, to_batch
from curerec.recommender.tune import TuneConfig, tune
from made_families import TYPES, in_double, left_padded, lora_on, made_family_model
from made_models import made_model, made_prompts, with_lora

PROMPTS, ENCODER = made_prompts(9)
WORDS = len(ENCODER.tokenizer)
CPU = torch.device("cpu")


def both(model, ids, last, **more):
    whole = answer_logits(model, ids, last, ENCODER.answers, **more)
    assert can_be_lean(model)
    return whole, answer_logits(model, ids, last, ENCODER.answers, lean=True, **more)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("lora", [False, True])
def test_answers_and_gradients_are_those_of_the_whole_pass(model_type, lora):
    model = made_family_model(model_type, WORDS)
    model = lora_on(model) if lora else model.requires_grad_(True)
    params = [p for p in model.parameters() if p.requires_grad]
    whole, lean = both(model, *to_batch(PROMPTS, np.arange(9), CPU))
    torch.testing.assert_close(lean, whole, atol=1e-5, rtol=1e-5)
    weight = torch.randn(whole.shape)
    want = torch.autograd.grad((whole * weight).sum(), params, allow_unused=True)
    got = torch.autograd.grad((lean * weight).sum(), params, allow_unused=True)
    for a, b in zip(want, got, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", TYPES)
def test_padding_on_the_left_and_other_embeddings(model_type):
    model = made_family_model(model_type, WORDS)
    ids, last, mask = left_padded(PROMPTS, np.arange(9))
    with torch.no_grad():
        torch.testing.assert_close(*both(model, ids, last, mask=mask), atol=1e-5, rtol=1e-5)
        ids, last = to_batch(PROMPTS, np.arange(9), CPU)
        embeds = torch.randn(*ids.shape, model.config.hidden_size)
        torch.testing.assert_close(*both(model, ids, last, inputs_embeds=embeds), atol=1e-5, rtol=1e-5)


def ends(model, config, monkeypatch):
    lean = tune(copy.deepcopy(model), PROMPTS, ENCODER.answers, config, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("curerec.recommender.score.can_be_lean", lambda model: False)
        whole = tune(copy.deepcopy(model), PROMPTS, ENCODER.answers, config, seed=1)
    return zip(lean.parameters(), whole.parameters(), strict=True)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_ends_at_the_same_weights(lora, optimizer, monkeypatch):
    config = TuneConfig(epochs=2, batch_size=4, lr=1e-3, optimizer=optimizer, ema=0.9)
    model = made_model(WORDS)
    model = with_lora(model) if lora else model.requires_grad_(True)
    if optimizer == "sgd":
        for a, b in ends(model, config, monkeypatch):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    # AdamW divides a gradient by its own size: where it is a rounding error, so is the step's direction.
    # In double precision the two ways part by less than any of that.
    with in_double(model):
        for a, b in ends(model, config, monkeypatch):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_after_adamw_in_float32_the_answers_agree(monkeypatch):
    config = TuneConfig(epochs=3, batch_size=4, lr=1e-3, ema=0.9)
    model = made_model(WORDS).requires_grad_(True)
    lean = score(
        tune(copy.deepcopy(model), PROMPTS, ENCODER.answers, config, seed=1), PROMPTS, ENCODER.answers
    )
    monkeypatch.setattr("curerec.recommender.score.can_be_lean", lambda model: False)
    whole = score(
        tune(copy.deepcopy(model), PROMPTS, ENCODER.answers, config, seed=1), PROMPTS, ENCODER.answers
    )
    np.testing.assert_allclose(lean, whole, atol=1e-5)


def test_the_last_layers_mlp_sees_one_position():
    model, seen = made_model(WORDS), []
    ids, last = to_batch(PROMPTS, np.arange(9), CPU)
    layer = family_of(model).layer_list(model)[-1]
    with answer_only(model, last):
        handle = layer.mlp.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        handle.remove()
    assert seen == [(9, 1, 16)] and torch.equal(hidden[:, 0], hidden[:, -1])
    assert model.model(input_ids=ids, use_cache=False).last_hidden_state.shape == (*ids.shape, 16)


def test_whoever_listens_or_changes_sees_the_whole_pass():
    model, seen = made_model(WORDS), []
    want = score(model, PROMPTS, ENCODER.answers)
    layer = family_of(model).layer_list(model)[-1]
    handle = layer.self_attn.o_proj.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    assert not can_be_lean(model)
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), want, atol=1e-5)
    assert seen == [PROMPTS.lengths.max()]
    handle.remove()
    assert can_be_lean(model)


def test_dropout_takes_the_whole_pass():
    model = with_lora(made_model(WORDS))
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(0.5)
    assert can_be_lean(model) and not can_be_lean(model.train())


def test_gradient_checkpointing_gives_the_same_gradients():
    model = with_lora(made_model(WORDS, layers=3))
    params = [p for p in model.parameters() if p.requires_grad]
    ids, last = to_batch(PROMPTS, np.arange(9), CPU)
    want = torch.autograd.grad(answer_logits(model, ids, last, ENCODER.answers).sum(), params)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    got = torch.autograd.grad(answer_logits(model, ids, last, ENCODER.answers, lean=True).sum(), params)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)
    assert all(m.gradient_checkpointing for m in family_of(model).layer_list(model))


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "phi"])
def test_queries_of_the_last_layer_are_computed_at_one_position(model_type):
    model, seen = made_family_model(model_type, WORDS), []
    family = family_of(model)
    query = family.layer_list(model)[-1].get_submodule(family.projections["q_proj"].path)
    ids, last = to_batch(PROMPTS, np.arange(9), CPU)

    def formed(x, product=query.forward):
        seen.append(x.shape[:2])
        return product(x)

    query.forward = formed
    with answer_only(model, last):
        model.get_decoder()(input_ids=ids, use_cache=False)
    assert seen == [(9, 1)] and query.forward is formed
