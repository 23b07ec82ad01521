"""Copies with an adapter hold the frozen weights once; nothing that a copy does reaches the original."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from curerec.methods import METHODS
from curerec.recommender.copies import base_of, copied
from curerec.recommender.score import score
from made_families import made_family_model
from made_few_bits import PACKAGES, in_eight_bits, put_in_place
from made_models import made_prompts, with_lora
from made_tasks import made_task


def places(model, *, adapter):
    return {p.data_ptr() for n, p in model.named_parameters() if ("lora_" in n) == adapter}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_copied_and_its_base_is_not(family):
    original = made_task("lora", family=family).original.model
    copy = copied(original)
    assert places(copy, adapter=False) == places(original, adapter=False)
    assert not places(copy, adapter=True) & places(original, adapter=True)
    whole = copied(original, whole=True)
    assert not places(whole, adapter=False) & places(original, adapter=False)


def test_without_a_frozen_base_everything_is_copied():
    full = made_task("full").original.model
    assert not places(copied(full), adapter=False) & places(full, adapter=False)
    lora = made_task("lora").original.model
    merged = copied(lora, whole=True)
    merged.merge_adapter()
    again = copied(merged)
    assert not places(again, adapter=False) & places(merged, adapter=False)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_base_of_an_adapter_answers_as_the_base(family):
    task = made_task("lora", family=family)
    want = score(task.fresh(), task.forget_prompts, task.answers)
    before = score(task.original.model, task.forget_prompts, task.answers)
    base = task.base_model()
    np.testing.assert_allclose(score(base, task.forget_prompts, task.answers), want, atol=1e-6)
    assert not np.allclose(before, want, atol=1e-3)
    np.testing.assert_array_equal(score(task.original.model, task.forget_prompts, task.answers), before)
    assert places(base, adapter=False) == places(task.original.model, adapter=False)
    loaded = object()
    assert base_of(made_task("full").original.model, lambda: loaded) is loaded


@pytest.mark.parametrize("package", PACKAGES)
def test_a_base_in_eight_bits_answers_for_every_copy_and_is_held_once(package, monkeypatch):
    prompts, encoder = made_prompts(6)
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    plain = made_family_model("llama", len(encoder.tokenizer), scale=0.02, **sizes)

    def made():
        return with_lora(in_eight_bits(copy.deepcopy(plain), package))

    want = score(made(), prompts, encoder.answers)
    original = made()
    put_in_place(monkeypatch, package)
    first, base = copied(original), base_of(original, lambda: None)
    # Whoever is asked first is the one that packs the codes away.
    np.testing.assert_array_equal(score(first, prompts, encoder.answers), want)
    assert np.abs(score(base, prompts, encoder.answers) - want).max() > 1e-3
    np.testing.assert_array_equal(score(original, prompts, encoder.answers), want)
    later = copied(original)
    assert codes(later) == codes(first) == codes(base) == codes(original)
    assert len(codes(original)) == 2 * 7
    assert not places(later, adapter=True) & places(original, adapter=True)
    np.testing.assert_array_equal(score(later, prompts, encoder.answers), want)
    assert not codes(copied(original, whole=True)) & codes(original)


def codes(model):
    """Where the codes lie that modules in 8 bits hold, as parameters or in their state."""
    parts = [m for m in model.modules() if hasattr(getattr(m, "state", None), "CB")]
    return {m.state.CB.data_ptr() for m in parts} | {m.weight.data_ptr() for m in parts}


@pytest.mark.parametrize("method", ["npo", "cure"])
def test_a_request_holds_the_base_once(method):
    task = made_task("lora")
    short = {"max_steps": 2, "check_every": 1, "check_size": 20, "batch_size": 8, "max_auc_drop": 1}
    changes = {
        "npo": short,
        "cure": {"pairs": 8, "pair_pool": 16, "control_size": 20, "draws": 5, "update": short},
    }
    out = METHODS[method][0](task, METHODS[method][1](**changes[method]))
    assert places(out.model, adapter=False) == places(task.original.model, adapter=False)
    frozen = [p for n, p in out.model.named_parameters() if "lora_" not in n]
    assert not any(p.requires_grad for p in frozen)
    moved = [
        not torch.equal(p, dict(task.original.model.named_parameters())[n])
        for n, p in out.model.named_parameters()
        if "lora_" in n
    ]
    assert any(moved)
