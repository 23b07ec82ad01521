"""Passes that begin above kept states give what whole passes give, and never what other weights gave."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from curerec.circuits.adapter import adapter_scores
from curerec.circuits.belonging import modules_with_units
from curerec.circuits.core import find_core
from curerec.circuits.passes import Cost
from curerec.circuits.patching import moving_pairs, patched_margins
from curerec.circuits.scorers import atp
from curerec.recommender import lower
from curerec.recommender.copies import base_of, copied
from curerec.recommender.families import family_of
from curerec.recommender.score import answer_logits, score, to_batch
from curerec.recommender.tune import TuneConfig, tune
from curerec.recommender.units import units_of
from made_families import TYPES, in_double, lora_on, made_family_model
from made_few_bits import PACKAGES, in_eight_bits
from made_models import made_model, made_prompts, other_titles

PROMPTS, ENCODER = made_prompts(12)
WORDS = len(ENCODER.tokenizer)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    """A store of this test's own."""
    monkeypatch.setattr(lower, "STATES", lower.States())
    monkeypatch.setattr(lower, "_read", [])


def gradients(model, index, lean):
    ids, last = to_batch(PROMPTS, index, CPU)
    params = [p for p in model.parameters() if p.requires_grad]
    out = answer_logits(model, ids, last, ENCODER.answers, lean=lean)
    loss = torch.nn.functional.cross_entropy(out, torch.from_numpy(PROMPTS.label[index].astype(np.int64)))
    return out.detach(), torch.autograd.grad(loss, params)


def distinct():
    """How many different prompts there are."""
    starts = PROMPTS.offsets
    return len({PROMPTS.ids[a:b].tobytes() for a, b in itertools.pairwise(starts)})


def without(monkeypatch, function, *args):
    with monkeypatch.context() as patch:
        patch.setattr(lower.STATES, "most", 0)
        return function(*args)


@pytest.mark.parametrize("model_type", TYPES)
def test_answers_and_gradients_are_those_of_whole_passes(model_type, monkeypatch):
    more = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    options = more if model_type == "gemma3_text" else {}
    model = made_family_model(model_type, WORDS, num_hidden_layers=3, **options)
    model = lora_on(model, layers=(1, 2))
    assert lower.lowest_updated(model) == 1
    with in_double(model):
        check(model, monkeypatch)


def check(model, monkeypatch):
    index = np.array([3, 0, 7, 5])
    for lean in (False, True):
        want, want_grads = without(monkeypatch, gradients, model, index, lean)
        for _ in range(2):  # the second time from the store
            got, grads = gradients(model, index, lean)
            torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-11)
            for a, b in zip(grads, want_grads, strict=True):
                torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)
    assert lower.STATES.computed == len(index)
    # Other rows beside, other padding, an order of its own; then, without gradients, everything.
    want, _ = without(monkeypatch, gradients, model, np.array([5, 1, 11]), True)
    got, _ = gradients(model, np.array([5, 1, 11]), True)
    torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-11)
    whole = without(monkeypatch, score, model, PROMPTS, ENCODER.answers)
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), whole, atol=1e-6)
    assert lower.STATES.computed == distinct()


def upper(model, first):
    """Of a model without adapters only the layers from ``first`` on are trained."""
    model.requires_grad_(False)
    for layer in family_of(model).layer_list(model)[first:]:
        layer.requires_grad_(True)
    return model


@pytest.mark.parametrize("adapter", [True, False])
def test_training_ends_where_it_ends_without_and_computes_every_prompt_once(adapter, monkeypatch):
    base = made_model(WORDS, layers=3).double()
    config = TuneConfig(epochs=3, batch_size=4, lr=0.01)

    def trained():
        model = copy.deepcopy(base)
        model = lora_on(model, layers=(2,)) if adapter else upper(model, 2)
        tune(model, PROMPTS, ENCODER.answers, config, seed=0)
        return [p.detach().clone() for n, p in model.named_parameters() if "lora" in n or not adapter]

    want = without(monkeypatch, trained)
    assert lower.STATES.computed == 0
    got = trained()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    once = lower.STATES.computed
    assert once == distinct()
    trained()  # the same base again, another copy of its weights
    assert lower.STATES.computed == once


def test_scored_first_trained_after(monkeypatch):
    model = lora_on(made_model(WORDS, layers=3), layers=(2,))
    score(model, PROMPTS, ENCODER.answers)
    _, grads = gradients(model, np.arange(4), True)  # inference tensors would refuse
    assert any(float(g.abs().max()) > 0 for g in grads)


def test_copies_and_the_base_itself_share_what_is_kept(monkeypatch):
    model = lora_on(made_model(WORDS, layers=3), layers=(1, 2))
    score(model, PROMPTS, ENCODER.answers)
    once = lower.STATES.computed
    base = base_of(model, lambda: None)
    want = without(monkeypatch, score, base, PROMPTS, ENCODER.answers)
    np.testing.assert_allclose(score(base, PROMPTS, ENCODER.answers), want, atol=1e-5)
    score(copied(model), PROMPTS, ENCODER.answers)
    assert lower.STATES.computed == once


def test_weights_that_change_are_not_answered_for_by_what_they_were(monkeypatch):
    model = lora_on(made_model(WORDS, layers=3), layers=(2,))
    old = score(model, PROMPTS, ENCODER.answers)
    layer = family_of(model).layer_list(model)[0]
    with torch.no_grad():
        layer.mlp.down_proj.weight.mul_(3.0)
    want = without(monkeypatch, score, model, PROMPTS, ENCODER.answers)
    assert np.abs(want - old).max() > 1e-3
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), want, atol=1e-5)
    # A weight that takes the place of another, of the same shape and as fresh as it.
    layer.mlp.up_proj.weight = torch.nn.Parameter(layer.mlp.up_proj.weight.detach() * 2, requires_grad=False)
    want = without(monkeypatch, score, model, PROMPTS, ENCODER.answers)
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), want, atol=1e-5)
    # Other numbers put behind the same tensor; torch does not count that.
    layer.mlp.up_proj.weight.data = layer.mlp.up_proj.weight.data * 2
    want = without(monkeypatch, score, model, PROMPTS, ENCODER.answers)
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), want, atol=1e-5)
    # Written over in place behind torch's back: only who did it knows.
    layer.mlp.up_proj.weight.data.mul_(2)
    lower.forget_states()
    want = without(monkeypatch, score, model, PROMPTS, ENCODER.answers)
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), want, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_that_were_trained_are_not_answered_for_by_what_they_were(optimizer, monkeypatch):
    """Torch's fused step of AdamW does not count that it writes."""
    model = upper(made_model(WORDS, layers=3), 2)
    old = score(model, PROMPTS, ENCODER.answers)
    assert lower.STATES.computed == distinct()
    config = TuneConfig(epochs=4, batch_size=4, lr=1e-2, optimizer=optimizer)
    upper(tune(model.requires_grad_(True), PROMPTS, ENCODER.answers, config, seed=0), 2)
    want = without(monkeypatch, score, model, PROMPTS, ENCODER.answers)
    assert np.abs(want - old).max() > 1e-2
    np.testing.assert_allclose(score(model, PROMPTS, ENCODER.answers), want, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "phi", "phi3"])
def test_other_rotations_are_another_base(model_type):
    more = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    options = {"gemma3_text": more, "phi": {"partial_rotary_factor": 1.0}}.get(model_type, {})
    model = made_family_model(model_type, WORDS, num_hidden_layers=3, **options).bfloat16()
    rounded = lora_on(copy.deepcopy(model), layers=(2,))
    decoder = family_of(model).decoder(model)
    decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)  # as a model is that was loaded in bfloat16
    exact = lora_on(model, layers=(2,))
    first = score(rounded, PROMPTS, ENCODER.answers)
    found = score(exact, PROMPTS, ENCODER.answers)
    lower.forget_states()
    np.testing.assert_array_equal(found, score(exact, PROMPTS, ENCODER.answers))
    assert np.abs(found - first).max() > 0


def test_only_where_nothing_below_can_change_or_is_listened_to():
    def made():
        return lora_on(made_model(WORDS, layers=3), layers=(2,))

    assert lower.lowest_updated(made()) == 2
    assert lower.lowest_updated(lora_on(made_model(WORDS, layers=3), layers=(0, 2))) == 0
    assert lower.lowest_updated(made_model(WORDS, layers=3)) == 0
    trained = made()
    next(family_of(trained).layer_list(trained)[1].parameters()).requires_grad_(True)
    assert lower.lowest_updated(trained) == 0
    listened = made()
    handle = family_of(listened).layer_list(listened)[0].register_forward_hook(lambda *args: None)
    assert lower.lowest_updated(listened) == 0
    handle.remove()
    assert lower.lowest_updated(listened) == 2
    routed = made()
    mlp = family_of(routed).layer_list(routed)[0].mlp

    class Router(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.threshold = inner, 0.5

        def forward(self, x):
            return self.inner(x)

    family_of(routed).layer_list(routed)[0].mlp = Router(mlp)
    assert lower.lowest_updated(routed) == 0


@pytest.mark.parametrize("package", PACKAGES)
def test_bases_of_equal_codes_and_other_scales_do_not_answer_for_each_other(package):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    one, other = (made_family_model("llama", WORDS, scale=0.02, **sizes) for _ in range(2))
    with torch.no_grad():
        family_of(other).layer_list(other)[0].mlp.down_proj.weight.mul_(2)
    one, other = (lora_on(in_eight_bits(model, package), layers=(2,)) for model in (one, other))
    first = score(one, PROMPTS, ENCODER.answers)
    found = score(other, PROMPTS, ENCODER.answers)
    lower.forget_states()
    np.testing.assert_allclose(found, score(other, PROMPTS, ENCODER.answers), atol=1e-6)
    assert np.abs(found - first).max() > 1e-3


@pytest.mark.parametrize("model_type", TYPES)
def test_without_adapters_passes_begin_at_the_lowest_layer_that_is_trained(model_type, monkeypatch):
    more = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    options = more if model_type == "gemma3_text" else {}
    model = upper(made_family_model(model_type, WORDS, num_hidden_layers=3, **options), 2)
    assert lower.lowest_updated(model) == 2
    with in_double(model):
        check(model, monkeypatch)


def test_without_adapters_nothing_is_kept_of_what_can_change():
    model = upper(made_model(WORDS, layers=3), 1)
    family_of(model).decoder(model).get_input_embeddings().requires_grad_(True)
    assert lower.lowest_updated(model) == 0
    assert lower.lowest_updated(model.requires_grad_(False)) == 0
    assert lower.lowest_updated(model.requires_grad_(True)) == 0


def test_dropout_below_is_drawn_anew():
    model = lora_on(made_family_model("gpt2", WORDS, num_hidden_layers=3, embd_pdrop=0.5), layers=(2,))
    assert lower.lowest_updated(model) == 2
    model.train()
    assert lower.lowest_updated(model) == 0


def test_no_more_bytes_than_allowed_and_the_last_used_stay():
    states = lower.States(most=4 * 4 * 10)
    row = torch.zeros(10, dtype=torch.float32)
    for k in range(4):
        states.put(("", bytes([k])), row.clone())
    assert states.held == states.most
    states.get(("", bytes([0])))
    states.put(("", bytes([9])), row.clone())
    assert states.held == states.most
    assert states.get(("", bytes([0]))) is not None and states.get(("", bytes([1]))) is None
    states.put(("", b"large"), torch.zeros(1000))
    assert states.get(("", b"large")) is None and states.held == states.most


def test_who_measures_what_a_pass_costs_sees_whole_passes():
    model = lora_on(made_model(WORDS, layers=3), layers=(2,))
    with lower.nothing_kept():
        score(model, PROMPTS, ENCODER.answers)
    assert lower.STATES.computed == 0
    score(model, PROMPTS, ENCODER.answers)
    assert lower.STATES.computed == distinct()


@pytest.mark.parametrize("granularity", ["row", "projection"])
def test_contributions_are_those_of_whole_passes(granularity, monkeypatch):
    model = lora_on(made_model(WORDS, layers=3), layers=(1, 2))
    units = units_of(model, granularity)
    args = model, PROMPTS, ENCODER.answers, units, {}
    want = without(monkeypatch, adapter_scores, *args)
    assert lower.STATES.computed == 0 and np.abs(want).max() > 1e-3
    np.testing.assert_allclose(adapter_scores(*args), want, atol=1e-6)
    assert lower.STATES.computed == distinct()


def test_circuits_above_an_adapter_run_what_lies_below_once_a_prompt():
    model = lora_on(made_model(WORDS, layers=4), layers=(2, 3))
    corrupt = other_titles(PROMPTS, WORDS)
    ran = [0] * 4
    for k, layer in enumerate(family_of(model).layer_list(model)):
        if k >= 2:  # below, nothing would be kept of what is listened to
            layer.mlp.register_forward_hook(lambda m, args, y, k=k: ran.__setitem__(k, ran[k] + len(y)))
    n, spent = len(PROMPTS), Cost()
    upper = modules_with_units(model)
    given = model, PROMPTS, corrupt, ENCODER.answers
    assert lower.lowest_updated(model) == 2
    patched_margins(*given, [set(), set(upper), {"layers.3.mlp"}], cost=spent)
    once = lower.STATES.computed
    assert once == distinct() + len({tuple(r) for r in corrupt.padded(np.arange(n))[0].tolist()})
    assert ran[2:] == [3 * n, 4 * n]
    # Corrupt, clean, all patched: half a pass each; the last layer a quarter; below, half a pass a prompt.
    assert spent.forwards == pytest.approx(n * (3 / 2 + 1 / 4) + once / 2)
    found = atp.score(*given, among=upper)
    assert lower.STATES.computed == once and ran[2:] == [5 * n, 6 * n]
    assert found.cost.forward_equivalents == pytest.approx(3 / 2)
    moved = moving_pairs(*given, n, among=upper)
    few = model, PROMPTS.take(moved), corrupt.take(moved), ENCODER.answers
    circuit = find_core(*few, scorer="atp", among=upper, threshold=0.5, draws=4)
    assert lower.STATES.computed == once
    assert circuit.fixed == len(upper) and set(circuit.modules) == set(upper)
    assert circuit.cost["forward_equivalents"] == pytest.approx(3 / 2)


@pytest.mark.parametrize("layers", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_patching_is_that_of_whole_passes_and_leaves_no_other_states(model_type, layers, monkeypatch):
    """Circuits compute the last layer at the answer alone: what enters it must be seen before that."""
    model = lora_on(made_family_model(model_type, WORDS, num_hidden_layers=3), layers=layers)
    corrupt = other_titles(PROMPTS, WORDS)
    upper = {n for n in family_of(model).module_names(model) if int(n.split(".")[1]) >= layers[0]}
    sets = [set(), upper, {f"layers.{layers[0]}.mlp"}]
    with in_double(model):
        for asked in (sets, [upper, set()]):
            given = PROMPTS, corrupt, ENCODER.answers, asked
            kept = patched_margins(model, *given)
            whole = without(monkeypatch, patched_margins, model, *given)
            np.testing.assert_allclose(kept, whole, atol=1e-12)
        # Scores of the upper modules, from passes whose gradient ends where they begin.
        given = PROMPTS, corrupt, ENCODER.answers
        kept = atp.score(model, *given, among=upper)
        whole = without(monkeypatch, atp.score, model, *given)
        assert kept.embedding is None and set(kept.names) == upper
        np.testing.assert_allclose(kept.values, whole.among(upper).values, atol=1e-12)
        assert np.abs(kept.values).max() > 1e-4
        after = score(model, PROMPTS, ENCODER.answers)
        lower.STATES.clear()
        np.testing.assert_allclose(after, score(model, PROMPTS, ENCODER.answers), atol=1e-12)
