"""The adapter scorer against autograd's weight gradients, example by example."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits.adapter import adapter_scores, weight_deltas
from curerec.circuits.path import path_scores
from curerec.recommender.score import answer_logits, to_batch
from curerec.recommender.units import units_of
from made_models import made_model, made_prompts, tuned_pair, with_lora

GRANULARITIES = ["row", "projection", "head_mlp"]
WITH_ADAPTER = [*GRANULARITIES, "rank"]
FULL = {
    "tied": ("llama", {}),
    "untied": ("llama", {"tied": False}),
    "biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"tied": False}),
}


def losses(model, prompts, answers):
    ids, last = to_batch(prompts, np.arange(len(prompts)), torch.device("cpu"))
    label = torch.from_numpy(prompts.label.astype(np.int64))
    return torch.nn.functional.cross_entropy(
        answer_logits(model, ids, last, answers), label, reduction="none"
    )


def reference(model, prompts, answers, units, change):
    """-sum(change * dL/dweight) over each unit's slice, from autograd, one example at a time."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for p in parameters.values():
        p.requires_grad_(True)
    names = sorted({b.weight for b in units.branches})
    branch_of = {b.weight: b for b in units.branches}
    out = np.zeros((len(prompts), len(units.names)))
    for n in range(len(prompts)):
        loss = losses(model, prompts.take(np.array([n])), answers)[0]
        grads = torch.autograd.grad(loss, [parameters[name] for name in names])
        for name, g in zip(names, grads, strict=True):
            branch = branch_of[name]
            worth = -(change[name] * g).detach()
            worth = worth.sum(1 - branch.dim) if worth.ndim == 2 else worth
            np.add.at(out[n], branch.unit, worth.double().numpy())
    return out


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("case", FULL)
def test_full_fine_tuning(case, granularity):
    kind, options = FULL[case]
    prompts, encoder = made_prompts(6)
    model, base = tuned_pair(made_model(len(encoder.tokenizer), kind, **options))
    units = units_of(model, granularity)
    deltas = weight_deltas(model, base, units)
    got = adapter_scores(model, prompts, encoder.answers, units, deltas, batch_size=4)
    want = reference(model, prompts, encoder.answers, units, deltas)
    assert np.abs(want).max() > 1e-2
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=1e-3)


@pytest.mark.parametrize("granularity", WITH_ADAPTER)
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"], ["o_proj", "down_proj"]])
def test_lora(granularity, targets):
    prompts, encoder = made_prompts(6)
    model = with_lora(made_model(len(encoder.tokenizer)), **({"targets": targets} if targets else {}))
    units = units_of(model, granularity)
    change = {n: p.detach() for n, p in model.named_parameters() if "lora_" in n}
    got = adapter_scores(
        model, prompts, encoder.answers, units, weight_deltas(model, {}, units), batch_size=4
    )
    want = reference(model, prompts, encoder.answers, units, change)
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max(), rtol=1e-3)


@pytest.mark.parametrize("lora", [False, True])
def test_finer_units_sum_to_coarser_ones(lora):
    prompts, encoder = made_prompts(6)
    model, base = tuned_pair(made_model(len(encoder.tokenizer)))
    model = with_lora(model) if lora else model
    total = []
    for granularity in WITH_ADAPTER if lora else GRANULARITIES:
        units = units_of(model, granularity)
        deltas = weight_deltas(model, base, units)
        scores = adapter_scores(model, prompts, encoder.answers, units, deltas)
        if granularity == "rank":  # a plain model has no fused map: the terms of a branch are its projection
            terms = {}
            for name, score in zip(units.names, scores.T, strict=True):
                terms[name.split(".rank.")[0]] = terms.get(name.split(".rank.")[0], 0) + score
            assert set(terms) == set(rows)
            for name, score in terms.items():
                np.testing.assert_allclose(score, rows[name], atol=1e-4)
        total.append(scores.sum(1))
        if granularity == "row":
            rows = {}
            for name, score in zip(units.names, scores.T, strict=True):
                rows[name.split(".row.")[0]] = rows.get(name.split(".row.")[0], 0) + score
        if granularity == "projection":
            assert set(rows) == set(units.names)
            for name, score in zip(units.names, scores.T, strict=True):
                np.testing.assert_allclose(rows[name], score, atol=1e-4)
    for other in total[1:]:
        np.testing.assert_allclose(other, total[0], atol=1e-4)


@pytest.mark.parametrize(("lora", "granularity"), [(False, "row"), (True, "row"), (True, "rank")])
def test_the_path_accounts_for_all_of_the_change_in_loss(lora, granularity):
    prompts, encoder = made_prompts(6)
    start = made_model(len(encoder.tokenizer))
    model, base = tuned_pair(start)
    if lora:
        model = with_lora(start)
        with torch.no_grad(), model.disable_adapter():
            before = losses(model, prompts, encoder.answers).numpy()
    else:
        with torch.no_grad():
            before = losses(start, prompts, encoder.answers).numpy()
    units = units_of(model, granularity)
    deltas = weight_deltas(model, base, units)
    scores = path_scores(model, prompts, encoder.answers, units, deltas, steps=32)
    with torch.no_grad():
        after = losses(model, prompts, encoder.answers).numpy()
    assert np.abs(before - after).max() > 0.05
    np.testing.assert_allclose(scores.sum(1), before - after, atol=2e-3)


def test_the_order_and_batching_of_prompts_do_not_matter():
    prompts, encoder = made_prompts(9)
    model, base = tuned_pair(made_model(len(encoder.tokenizer)))
    units = units_of(model, "projection")
    deltas = weight_deltas(model, base, units)
    order = np.random.default_rng(0).permutation(len(prompts))
    one = adapter_scores(model, prompts, encoder.answers, units, deltas, batch_size=1)
    all_ = adapter_scores(model, prompts.take(order), encoder.answers, units, deltas)
    np.testing.assert_allclose(all_, one[order], atol=1e-5)


def test_what_did_not_change_scores_nothing_and_the_model_is_left_as_it_was():
    prompts, encoder = made_prompts(4)
    model = made_model(len(encoder.tokenizer))
    base = {k: v.clone() for k, v in model.state_dict().items()}
    planted = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(planted)[5] += 0.5
        model.get_parameter("model.norm.weight")[3] = 0.0  # a norm weight of 0 hides what the change did
    model.get_parameter("model.norm.weight").requires_grad_(False)
    units = units_of(model, "row")
    scores = adapter_scores(model, prompts, encoder.answers, units, weight_deltas(model, base, units))
    moved = {units.names[k] for k in np.flatnonzero(np.abs(scores).max(0) > 0)}
    assert moved == {"layers.1.up_proj.row.5", "norm"}
    assert not model.get_parameter("model.norm.weight").requires_grad
    assert model.get_parameter(planted).requires_grad and not model.model._forward_hooks
    assert all(p.grad is None for p in model.parameters())


def test_lora_branches_that_write_nothing_score_nothing():
    prompts, encoder = made_prompts(4)
    model = with_lora(made_model(len(encoder.tokenizer)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name and "layers.1.self_attn.q_proj" not in name:
                p.zero_()
    units = units_of(model, "projection")
    scores = adapter_scores(model, prompts, encoder.answers, units, {})
    assert {units.names[k] for k in np.flatnonzero(np.abs(scores).max(0) > 0)} == {"layers.1.q_proj"}
