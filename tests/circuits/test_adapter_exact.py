"""Units whose change is really taken back: the limit of the first-order score, and the base model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits.adapter import adapter_scores, weight_deltas
from curerec.circuits.adapter_exact import exact_adapter, values_without, without
from curerec.circuits.passes import Cost, margin
from curerec.recommender.score import answer_logits, to_batch
from curerec.recommender.units import units_of
from made_families import TYPES, in_double, lora_on, made_family_model
from made_models import made_prompts, tuned_pair

PROMPTS, ENCODER = made_prompts(5)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers


def margins(model):
    ids, last = to_batch(PROMPTS, np.arange(len(PROMPTS)), torch.device("cpu"))
    label = torch.from_numpy(PROMPTS.label.astype(np.int64))
    with torch.no_grad():
        return margin(answer_logits(model, ids, last, ANSWERS), label).numpy()


def made(model_type, lora):
    """A fine-tuned model, and the state before."""
    start = made_family_model(model_type, WORDS)
    model, base = tuned_pair(start)
    if lora:
        return lora_on(start), base
    return model, base


def shrunk(model, base, scale):
    """The model with fine-tuning's change made so much smaller, in place."""
    with torch.no_grad():
        if hasattr(model, "peft_config"):
            for name, p in model.named_parameters():
                if ".lora_B." in name:
                    p.mul_(scale)
            return model
        for name, p in model.named_parameters():
            p.copy_(base[name] + scale * (p - base[name]))
    return model


@pytest.mark.slow_but("*-True")
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("model_type", TYPES)
def test_the_first_order_score_tends_to_it_for_small_changes(model_type, lora):
    """The relative error is of the order of the change: a tenth of the change, a tenth of the error."""
    model, base = made(model_type, lora)
    with in_double(model):
        base = {k: v.double() for k, v in base.items()}
        errors = []
        for scale in (1e-2, 1e-1):  # together 1e-2, then 1e-3
            shrunk(model, base, scale)
            units = units_of(model, "projection")
            deltas = weight_deltas(model, base, units)
            first = adapter_scores(model, PROMPTS, ANSWERS, units, deltas, objective="margin")
            found = exact_adapter(model, PROMPTS, ANSWERS, units, deltas, scores=first)
            assert sorted(found.index) == list(range(len(units.names)))
            want = first[:, found.index]
            errors.append(np.linalg.norm(found.values - want) / np.linalg.norm(want))
    assert errors[1] < 0.02 and errors[1] == pytest.approx(errors[0] / 10, rel=0.2)


@pytest.mark.parametrize(
    ("lora", "granularity"),
    [*((lora, g) for lora in (False, True) for g in ("projection", "row", "head_mlp")), (True, "rank")],
)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_without_any_unit_it_is_the_base_model_and_without_none_as_it_was(model_type, lora, granularity):
    model, base = made(model_type, lora)
    if lora:
        with model.disable_adapter():
            want = margins(model)
    else:
        want = margins(made_family_model(model_type, WORDS))
    units = units_of(model, granularity)
    deltas = weight_deltas(model, base, units)
    before, weights = margins(model), {n: p.clone() for n, p in model.named_parameters()}
    nothing, everything = values_without(
        model, PROMPTS, ANSWERS, units, deltas, [(), range(len(units.names))], batch_size=2
    )
    np.testing.assert_allclose(nothing, before, atol=1e-5)
    np.testing.assert_allclose(everything, want, atol=1e-5)
    assert np.abs(everything - nothing).max() > 1e-2
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name]), name


def test_a_unit_is_taken_back_by_hand_the_same():
    """One row of a weight put back where it was, and the loss beside the margin."""
    model, base = made("llama", False)
    units = units_of(model, "row")
    deltas = weight_deltas(model, base, units)
    k = units.names.index("layers.1.up_proj.row.5")
    before = margins(model)
    only = np.zeros((1, len(units.names)))
    only[0, k] = 1.0  # as if it were the largest
    cost = Cost()
    found = exact_adapter(model, PROMPTS, ANSWERS, units, deltas, scores=only.repeat(5, 0), most=1, cost=cost)
    assert found.index.tolist() == [k] and cost.forwards == 2 * len(PROMPTS) and cost.backwards == 0
    loss = exact_adapter(
        model, PROMPTS, ANSWERS, units, deltas, scores=only.repeat(5, 0), most=1, objective="loss"
    )
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[5] = base[name][5]
    after = margins(model)
    np.testing.assert_allclose(found.values[:, 0], after - before, atol=1e-6)
    want = np.logaddexp(0, -after) - np.logaddexp(0, -before)
    np.testing.assert_allclose(loss.values[:, 0], want, atol=1e-6)


def test_only_the_largest_are_taken_and_merged_adapters_stay_merged():
    model, _ = made("llama", True)
    units = units_of(model, "projection")
    first = adapter_scores(model, PROMPTS, ANSWERS, units, {}, objective="margin")
    want = exact_adapter(model, PROMPTS, ANSWERS, units, {}, most=3)
    assert want.index.tolist() == np.argsort(-np.abs(first.mean(0)))[:3].tolist()
    assert want.values.shape == (5, 3) and want.values.dtype == np.float32
    model.merge_adapter()
    merged = {n: p.clone() for n, p in model.named_parameters()}
    got = exact_adapter(model, PROMPTS, ANSWERS, units, {}, most=3)
    np.testing.assert_allclose(got.values, want.values, atol=1e-5)
    assert all(torch.equal(p, merged[n]) for n, p in model.named_parameters())


def test_the_weights_are_back_also_where_something_fails():
    model, base = made("llama", False)
    units = units_of(model, "projection")
    deltas = weight_deltas(model, base, units)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(InterruptedError), without(model, units, deltas, [0, 3]):
        changed = [n for n, p in model.named_parameters() if not torch.equal(p, weights[n])]
        assert changed == ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"]
        raise InterruptedError
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
