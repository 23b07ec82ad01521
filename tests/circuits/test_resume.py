"""Patched passes that begin at the layer they change: the same numbers, and no layer below is run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits.activations import layer_of, sites_of
from curerec.circuits.passes import Cost
from curerec.circuits.patching import patched_margins
from curerec.recommender.families import family_of
from made_cases import alike_soaked, soaked
from made_families import TYPES, lora_on, made_family_model
from made_models import made_model, made_prompts, other_titles

CLEAN, ENCODER = made_prompts(6)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)


def sets_of(model):
    """One module each, the whole last layer, two layers at once, and nothing once more."""
    names = sites_of(model).names
    last = layer_of(names[-1])
    return [{m} for m in names] + [{m for m in names if layer_of(m) == last}, {names[0], names[-1]}, set()]


@pytest.mark.parametrize(("lora", "batch_size"), [(False, 2), soaked(False, 64), soaked(True, 2), (True, 64)])
@pytest.mark.parametrize("model_type", alike_soaked(TYPES))
def test_the_margins_of_whole_passes(model_type, lora, batch_size):
    model = made_family_model(model_type, WORDS)
    if lora:
        model = lora_on(model)
    sets = sets_of(model)
    got = patched_margins(model, CLEAN, CORRUPT, ANSWERS, [set(), *sets], batch_size=batch_size)
    whole = [patched_margins(model, CLEAN, CORRUPT, ANSWERS, [s], batch_size=batch_size)[0] for s in sets]
    np.testing.assert_array_equal(got[-1], got[0])
    np.testing.assert_allclose(got[1:-1], whole[:-1], rtol=0, atol=1e-6)
    assert np.abs(got[1:-1] - got[0]).max() > 1e-4


def test_layers_below_are_not_run_and_the_cost_says_so():
    model = made_model(WORDS, layers=4)
    layers = family_of(model).layer_list(model)
    ran = [0] * 4
    for k, layer in enumerate(layers):
        layer.self_attn.register_forward_hook(lambda *a, k=k: ran.__setitem__(k, ran[k] + 1))
    cost = Cost()
    sets = [set(), {"layers.0.mlp"}, {"layers.2.head.1"}, {"layers.3.mlp", "layers.1.head.0"}, set()]
    patched_margins(model, CLEAN, CORRUPT, ANSWERS, sets, cost=cost)
    # Corrupt and clean runs, then sets from layers 0, 2, 1, and the last layer alone for nothing.
    assert ran == [3, 4, 5, 6]
    assert cost.forwards == pytest.approx(sum(ran) / 4 * len(CLEAN))
    assert cost.forward_equivalents == pytest.approx(4.5)


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("model_type", TYPES)
def test_without_a_clean_run_passes_begin_above_what_no_set_patches(model_type, batch_size):
    model, cost = made_family_model(model_type, WORDS), Cost()
    names = sites_of(model).names
    last = layer_of(names[-1])
    upper = [m for m in names if layer_of(m) == last]
    sets = [set(upper), {upper[0]}, set(), {upper[-1]}]
    got = patched_margins(model, CLEAN, CORRUPT, ANSWERS, sets, batch_size=batch_size, cost=cost)
    whole = [patched_margins(model, CLEAN, CORRUPT, ANSWERS, [s], batch_size=batch_size)[0] for s in sets]
    np.testing.assert_allclose(got, whole, rtol=0, atol=1e-6)
    assert np.abs(got[0] - got[2]).max() > 1e-4
    assert cost.forward_equivalents == pytest.approx(2 + 3 / (last + 1))


def test_the_lowest_layer_of_all_sets_is_where_they_begin():
    model, cost = made_model(WORDS, layers=3), Cost()
    patched_margins(model, CLEAN, CORRUPT, ANSWERS, [{"layers.2.mlp"}, {"layers.1.mlp"}, set()], cost=cost)
    assert cost.forward_equivalents == pytest.approx(2 + 2 * 2 / 3)


def test_layers_are_as_they_were_also_after_an_error():
    model = made_model(WORDS, layers=3)
    before = [set(vars(layer)) for layer in family_of(model).layer_list(model)]
    with pytest.raises(RuntimeError, match="stop"):
        handle = model.get_decoder().norm.register_forward_pre_hook(stop_after(2))
        patched_margins(model, CLEAN, CORRUPT, ANSWERS, [set(), {"layers.2.mlp"}])
    handle.remove()
    layers = family_of(model).layer_list(model)
    assert [set(vars(layer)) for layer in layers] == before
    assert not any(layer._forward_hooks for layer in layers)
    assert torch.isfinite(model(torch.tensor([[1, 2]])).logits).all()


def stop_after(passes):
    """A hook that lets so many passes by."""
    seen = []

    def hook(*args):
        seen.append(1)
        if len(seen) > passes:
            raise RuntimeError("stop")

    return hook
