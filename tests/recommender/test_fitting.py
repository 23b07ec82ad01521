"""Passes in parts, where a batch does not fit in memory, give what the whole batch gives and keep less."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.recommender import fitting, lower, score
from curerec.recommender.alive import LivePeak
from curerec.recommender.fitting import memory_bytes, prompts_that_fit
from curerec.recommender.score import answer_logits, at_a_time, to_batch
from made_families import TYPES, in_double, lora_on, made_family_model
from made_models import made_prompts

PROMPTS, ENCODER = made_prompts(12)
WORDS = len(ENCODER.tokenizer)
CPU = torch.device("cpu")


def gradients(model, index):
    ids, last = to_batch(PROMPTS, index, CPU)
    params = [p for p in model.parameters() if p.requires_grad]
    out = answer_logits(model, ids, last, ENCODER.answers, lean=True)
    label = torch.from_numpy(PROMPTS.label[index].astype(np.int64))
    return out.detach(), torch.autograd.grad(torch.nn.functional.cross_entropy(out, label), params)


@pytest.fixture
def small(monkeypatch):
    """A machine on which so many prompts of these lengths fit."""

    def set_to(model, prompts):
        monkeypatch.setattr(fitting, "memory_bytes", lambda device: 0)
        pos = int(PROMPTS.lengths.max())
        one = fitting.bytes_a_prompt(model, pos)
        weights = fitting._sizes_of(model)[2]
        monkeypatch.setattr(fitting, "memory_bytes", lambda device: weights + int((prompts + 0.5) * 2 * one))
        assert prompts_that_fit(model, pos) == prompts

    return set_to


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_the_same_answers_and_gradients_in_parts(model_type, lora, small, monkeypatch):
    model = made_family_model(model_type, WORDS)
    model = lora_on(model) if lora else model
    index = np.arange(12)
    sizes = []
    inner = score._twice
    monkeypatch.setattr(score, "_twice", lambda m, ids, *rest: sizes.append(len(ids)) or inner(m, ids, *rest))
    with in_double(model):
        want = gradients(model, index)
        small(model, 5)
        found = gradients(model, index)
    assert sizes == [5, 5, 2]
    torch.testing.assert_close(found[0], want[0], rtol=1e-12, atol=1e-12)
    for a, b in zip(found[1], want[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    with torch.no_grad():  # nothing is kept, so nothing is cut
        answer_logits(model, *to_batch(PROMPTS, index, CPU), ENCODER.answers, lean=True)
    assert sizes == [5, 5, 2]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_less_is_kept_at_a_time_and_what_is_reckoned_holds_what_is_kept(model_type, small):
    wide = {"llama": {"hidden_size": 256, "intermediate_size": 704}, "gpt2": {"n_embd": 256}}[model_type]
    model = lora_on(made_family_model(model_type, WORDS, **wide).bfloat16())
    model.train()
    for name, p in model.named_parameters():
        p.data = p.data.float() if "lora" in name else p.data

    def peak(n):
        with LivePeak() as memory:
            gradients(model, np.arange(n))
        return memory.peak

    whole = peak(12)
    each = (whole - peak(6)) / 6
    assert each <= fitting.bytes_a_prompt(model, int(PROMPTS.lengths.max()))
    small(model, 3)
    assert peak(12) < 0.5 * whole


def test_no_part_of_a_small_model_is_cut_off_on_a_machine_of_some_size():
    model = made_family_model("llama", WORDS)
    assert prompts_that_fit(model, 300) > 1000
    assert at_a_time(PROMPTS, 7, CPU, model) == at_a_time(PROMPTS, 7, CPU) == 7
    assert memory_bytes(CPU) > 1 << 30


def test_what_lies_below_the_lowest_that_can_change_keeps_nothing():
    model = lora_on(made_family_model("llama", WORDS), layers=(1,))
    both = lora_on(made_family_model("llama", WORDS))
    assert 2 * fitting.bytes_a_prompt(model, 30) == fitting.bytes_a_prompt(both, 30)


def test_in_parts_above_kept_states(small, monkeypatch):
    model = lora_on(made_family_model("llama", WORDS), layers=(1,))
    with in_double(model):
        want = gradients(model, np.arange(12))
        monkeypatch.setattr(lower, "STATES", lower.States())
        small(model, 5)
        for _ in range(2):  # states are computed, then kept
            found = gradients(model, np.arange(12))
            torch.testing.assert_close(found[0], want[0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found[1], want[1], rtol=1e-8, atol=1e-10)
    assert lower.STATES.computed > 0


def test_one_prompt_is_passed_even_where_it_does_not_fit(monkeypatch):
    model = made_family_model("llama", WORDS)
    want = gradients(model, np.arange(3))
    monkeypatch.setattr(fitting, "memory_bytes", lambda device: 0)
    assert prompts_that_fit(model, 30) == 1
    torch.testing.assert_close(gradients(model, np.arange(3)), want)


def test_several_processes_are_not_cut(monkeypatch):
    model = made_family_model("llama", WORDS)
    monkeypatch.setattr(fitting, "memory_bytes", lambda device: 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert prompts_that_fit(model, 30) > len(PROMPTS)
