"""Passes in parts, where a batch does not fit in memory, give what the whole batch gives and keep less."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curerec.recommender import fitting, lower, score
from curerec.recommender import tune as tune_module
from curerec.recommender.alive import LivePeak
from curerec.recommender.families import family_of
from curerec.recommender.fitting import memory_bytes, prompts_that_fit
from curerec.recommender.runtime import Offload, RuntimeConfig
from curerec.recommender.score import answer_logits, at_a_time, to_batch
from curerec.recommender.tune import TuneConfig, tune
from made_families import TYPES, in_double, left_padded, lora_on, made_family_model
from made_models import made_prompts

PROMPTS, ENCODER = made_prompts(12)
WORDS = len(ENCODER.tokenizer)
CPU = torch.device("cpu")


def gradients(model, index, use=None):
    ids, last = to_batch(PROMPTS, index, CPU)
    params = [p for p in model.parameters() if p.requires_grad]
    out = answer_logits(model, ids, last, ENCODER.answers, lean=True, runtime=use)
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
def test_padding_on_the_left_and_other_embeddings_go_along_with_their_parts(model_type, small):
    model = made_family_model(model_type, WORDS)
    ids, last, mask = left_padded(PROMPTS, np.arange(12))
    plain, end = to_batch(PROMPTS, np.arange(12), CPU)
    embeds = torch.randn(*plain.shape, model.config.hidden_size, requires_grad=True)
    params = [p for p in model.parameters() if p.requires_grad]

    def asked():
        masked = answer_logits(model, ids, last, ENCODER.answers, lean=True, mask=mask)
        given = answer_logits(model, plain, end, ENCODER.answers, lean=True, inputs_embeds=embeds)
        loss = masked.square().sum() + given.square().sum()
        return masked.detach(), given.detach(), torch.autograd.grad(loss, [embeds, *params])

    want = asked()
    small(model, 5)
    torch.testing.assert_close(asked(), want, rtol=1e-4, atol=2e-5)


@pytest.mark.slow_but("gpt2")
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


@pytest.mark.parametrize("checkpoint", [False, True])
def test_nothing_of_a_part_is_kept_whatever_would_be_offloaded(checkpoint, small):
    model = made_family_model("llama", WORDS, hidden_size=64, intermediate_size=176)
    use = RuntimeConfig(checkpoint=checkpoint, offload_bytes=1 << 30)
    ids, last = to_batch(PROMPTS, np.arange(12), CPU)

    def kept(use):
        with LivePeak() as memory:
            out = answer_logits(model, ids, last, ENCODER.answers, lean=True, runtime=use)
            return memory.live - out.nbytes

    want, whole = gradients(model, np.arange(12)), kept(None)
    small(model, 3)
    assert kept(use) < whole / 50
    found = gradients(model, np.arange(12), use)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_parts_are_no_larger_for_what_only_a_whole_batch_may_offload(monkeypatch):
    sizes = []
    monkeypatch.setattr(score, "prompts_that_fit", lambda m, pos, use: 7 if use and use.offload_bytes else 3)
    inner = score._twice
    monkeypatch.setattr(score, "_twice", lambda m, ids, *rest: sizes.append(len(ids)) or inner(m, ids, *rest))
    model, use = made_family_model("llama", WORDS), RuntimeConfig(offload_bytes=1)
    gradients(model, np.arange(7), use)
    assert sizes == []
    gradients(model, np.arange(8), use)
    assert sizes == [3, 3, 2]


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


def test_workers_of_a_run_share_the_memory(small):
    """Two that each took half of all of it would have none left between them."""
    model = made_family_model("llama", WORDS)
    small(model, 8)
    alone, pos = prompts_that_fit(model, 30), int(PROMPTS.lengths.max())
    try:
        fitting.share_memory(2)
        assert 1 <= prompts_that_fit(model, pos) <= 4 and prompts_that_fit(model, 30) < alone
    finally:
        fitting.share_memory(1)
    assert prompts_that_fit(model, pos) == 8


@pytest.mark.parametrize(
    ("device", "kind", "kept"),
    [
        ("cpu", "sdpa", True),
        ("cuda", "sdpa", False),
        ("cuda", "flash_attention_2", False),
        ("cuda", "eager", True),
    ],
)
def test_fused_attention_keeps_no_scores(device, kind, kept):
    weights = [SimpleNamespace(device=torch.device(device))]
    config = SimpleNamespace(_attn_implementation=kind)
    assert fitting.keeps_scores(SimpleNamespace(parameters=lambda: iter(weights), config=config)) is kept


def test_several_processes_are_not_cut(monkeypatch):
    model = made_family_model("llama", WORDS)
    monkeypatch.setattr(fitting, "memory_bytes", lambda device: 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert prompts_that_fit(model, 30) > len(PROMPTS)


class Passed:
    """Counts the prompts of forward passes of a model's first layer."""

    def __init__(self, model):
        self.sizes = []
        family_of(model).layer_list(model)[0].register_forward_hook(self.seen)

    def seen(self, module, args, output):
        self.sizes.append(len(args[0]))


@pytest.mark.parametrize("lora", [False, True])
def test_a_training_in_parts_is_the_training_and_passes_every_prompt_once(lora, monkeypatch):
    """Gradients add up: no part has to be passed once more on the way back."""
    config = TuneConfig(epochs=2, batch_size=5, lr=1e-2, optimizer="sgd", ema=0.5)

    def trained(few):
        model = made_family_model("llama", WORDS)
        model = lora_on(model) if lora else model.requires_grad_(True)
        monkeypatch.setattr(tune_module, "prompts_that_fit", lambda model, pos, runtime: few)
        monkeypatch.setattr(score, "prompts_that_fit", lambda model, pos, use: few)  # asked of whole batches
        passed = Passed(model)
        with in_double(model):
            tune(model, PROMPTS, ENCODER.answers, config, seed=0)
        return {n: p.detach().clone() for n, p in model.named_parameters()}, passed.sizes

    want, whole = trained(100)
    found, cut = trained(2)
    assert set(whole) == {5, 2} and set(cut) == {2, 1} and sum(cut) == sum(whole) == 2 * len(PROMPTS)
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


def test_activations_go_to_main_memory_of_a_training_in_parts_too(monkeypatch):
    held = []

    class Spy(Offload):
        def __init__(self, budget_bytes):
            super().__init__(budget_bytes, smallest_bytes=1)
            held.append(self)

    monkeypatch.setattr("curerec.recommender.runtime.Offload", Spy)
    monkeypatch.setattr(tune_module, "prompts_that_fit", lambda model, pos, runtime: 2)
    model = made_family_model("llama", WORDS).requires_grad_(True)
    use = RuntimeConfig(offload_bytes=1 << 30)
    tune(model, PROMPTS, ENCODER.answers, TuneConfig(epochs=1, batch_size=6), seed=0, runtime=use)
    assert len(held) == 6 and all(one.peak_bytes > 0 for one in held)


def test_where_layers_keep_only_what_enters_them_more_prompts_fit(small):
    model = made_family_model("llama", WORDS, num_hidden_layers=8).requires_grad_(True)
    small(model, 5)
    pos = int(PROMPTS.lengths.max())
    assert prompts_that_fit(model, pos, RuntimeConfig(checkpoint=True)) > 2 * 5
    assert prompts_that_fit(model, pos, RuntimeConfig(offload_bytes=1 << 30)) == 5  # the same memory here
