"""What a table of tokens gives is what the first layer gives, wherever a table may stand in for it."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.recommender import lookup
from curerec.recommender.families import family_of
from curerec.recommender.score import score
from made_families import TYPES, lora_on, made_family_model
from made_models import made_model, made_prompts, with_lora

PROMPTS, ENCODER = made_prompts(12)
WORDS = len(ENCODER.tokenizer)
BY_TOKEN = {"llama", "smollm2", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"}


@pytest.fixture(autouse=True)
def always_pays(monkeypatch):
    monkeypatch.setattr(lookup, "REPEATS", 0)


def without_tables(model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(lookup, "can_look_up", lambda model: False)
        return score(model, PROMPTS, ENCODER.answers)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_answers_are_those_of_the_whole_pass(model_type, lora, monkeypatch):
    model = made_family_model(model_type, WORDS)
    model = lora_on(model) if lora else model
    model.eval()
    assert lookup.can_look_up(model) == (model_type in BY_TOKEN)
    want = without_tables(model, monkeypatch)
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), want, atol=1e-5)
    # In batches of two, where every batch has tokens that others lack.
    got = score(model, PROMPTS, ENCODER.answers, batch_size=2)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_each_token_is_multiplied_once_and_the_layer_is_itself_again(monkeypatch):
    model = with_lora(made_model(WORDS)).eval()
    layer = family_of(model).layer_list(model)[0]
    query, seen = layer.self_attn.q_proj, []
    before = {name: dict(vars(module)) for name, module in layer.named_modules()}
    monkeypatch.setattr(query, "forward", lambda x, f=query.forward: seen.append(x.shape[:-1]) or f(x))
    score(model, PROMPTS, ENCODER.answers)
    assert [int(np.prod(shape)) for shape in seen] == [len(np.unique(PROMPTS.ids))]
    monkeypatch.undo()
    after = {name: dict(vars(module)) for name, module in layer.named_modules()}
    assert before.keys() == after.keys() and all(before[n].keys() == after[n].keys() for n in before)


def test_it_is_left_alone_where_tokens_hardly_recur_or_somebody_listens(monkeypatch):
    model = made_model(WORDS).eval()
    layer = family_of(model).layer_list(model)[0]
    monkeypatch.setattr(lookup, "REPEATS", 10**6)
    with lookup.looked_up(model, PROMPTS):
        assert "forward" not in vars(layer.self_attn.q_proj)
    monkeypatch.setattr(lookup, "REPEATS", 0)
    with lookup.looked_up(model, PROMPTS):
        assert "forward" in vars(layer.self_attn.q_proj)
    seen = []
    handle = layer.self_attn.k_proj.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    score(model, PROMPTS, ENCODER.answers)
    handle.remove()
    assert seen == [PROMPTS.lengths.max()]


def test_an_error_inside_leaves_the_layer_as_it_was():
    model = made_model(WORDS).eval()
    with pytest.raises(KeyError), lookup.looked_up(model, PROMPTS):
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())
