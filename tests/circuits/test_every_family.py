"""Scores and patched runs on every family: against finite differences, and however the model is run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from curerec.circuits.activations import patching, recording, sites_of
from curerec.circuits.adapter import adapter_scores, weight_deltas
from curerec.circuits.attribution import attribute
from curerec.circuits.edges import EDGE_SCORERS, edge_scores
from curerec.circuits.patching import atp, exact, margin, patched_margins
from curerec.circuits.path import path_scores
from curerec.circuits.scorers import adapter, atp_ig, ig_node, relp
from curerec.circuits.scorers import atp as atp_scorer
from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.score import answer_logits, score, to_batch
from curerec.recommender.units import units_of
from made_cases import alike_soaked, every_pair, few, soaked
from made_families import (
    DEEP,
    MULTI_QUERY,
    PARTLY,
    TYPES,
    WITH_LORA,
    in_double,
    lora_on,
    made_family_model,
    model_of_kind,
    padded_on_the_left,
    subsets,
)
from made_models import made_prompts, other_titles, tuned_pair

CPU = torch.device("cpu")
CLEAN, ENCODER = made_prompts(6)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)
FEW = np.array([0, 3])
LABEL = torch.from_numpy(CLEAN.label.astype(np.int64))
GRANULARITIES = ["row", "projection", "head_mlp"]
WITH_ADAPTER = [*GRANULARITIES, "rank"]  # rank-one terms are an adapter's alone


def losses(model, prompts):
    ids, last = to_batch(prompts, np.arange(len(prompts)), CPU)
    label = torch.from_numpy(prompts.label.astype(np.int64))
    logits = answer_logits(model, ids, last, ANSWERS)
    return torch.nn.functional.cross_entropy(logits, label, reduction="none")


def close(got, want, floor):
    """Relative error of at most 1e-6, but for values below ``floor`` times the largest."""
    scale = np.abs(want).max()
    assert scale > 1e-3
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * floor * scale)


@pytest.mark.parametrize("kind", alike_soaked([*TYPES, *WITH_LORA, *PARTLY, *DEEP, *MULTI_QUERY]))
def test_node_scores_against_central_differences(kind):
    """d/de of the margin with the module at a + e (a' - a), for every head and MLP."""
    model = model_of_kind(kind, WORDS)
    clean, corrupt = CLEAN.take(FEW), CORRUPT.take(FEW)
    sites, eps = sites_of(model), 1e-5
    with in_double(model), torch.no_grad():
        with torch.enable_grad():
            got, names = atp(model, clean, corrupt, ANSWERS)
        (ids, last), (other, _) = (to_batch(p, np.arange(2), CPU) for p in (clean, corrupt))
        with recording(sites) as a:
            answer_logits(model, ids, last, ANSWERS)
        with recording(sites) as b:
            answer_logits(model, other, last, ANSWERS)
        want = np.zeros(got.shape)
        for k, name in enumerate(names):
            for e in (eps, -eps):
                moved = {s: a[s] + e * (b[s] - a[s]) for s in sites.attention | sites.mlp}
                with patching(sites, moved, {name}):
                    m = margin(answer_logits(model, ids, last, ANSWERS), LABEL[FEW])
                want[:, k] += m.numpy() / (2 * eps) * np.sign(e)
    assert np.abs(want).max(0).min() > 1e-5  # every module was put to the test
    close(got, want, 1e-3)


@pytest.mark.parametrize("model_type", alike_soaked(TYPES))
def test_scores_beside_patched_modules_against_central_differences(model_type):
    """As before, in a model of which one head and one MLP are patched throughout: their scores are 0."""
    model = made_family_model(model_type, WORDS)
    clean, corrupt = CLEAN.take(FEW), CORRUPT.take(FEW)
    sites, eps = sites_of(model), 1e-5
    given = {"layers.0.head.1", "layers.0.mlp"}
    with in_double(model), torch.no_grad():
        with torch.enable_grad():
            found = attribute(model, clean, corrupt, ANSWERS, scorer="atp", patched=given)
        (ids, last), (other, _) = (to_batch(p, np.arange(2), CPU) for p in (clean, corrupt))
        with recording(sites) as b:
            answer_logits(model, other, last, ANSWERS)
        with patching(sites, b, given), recording(sites) as a:
            answer_logits(model, ids, last, ANSWERS)
        want = np.zeros(found.values.shape)
        for k, name in enumerate(found.names):
            for e in (eps, -eps):
                moved = {s: a[s] + e * (b[s] - a[s]) for s in sites.attention | sites.mlp}
                with patching(sites, b, given), patching(sites, moved, {name}):
                    m = margin(answer_logits(model, ids, last, ANSWERS), LABEL[FEW])
                want[:, k] += m.numpy() / (2 * eps) * np.sign(e)
    idle = [k for k, name in enumerate(found.names) if name in given]
    assert (np.abs(want).max(0) > 1e-5).sum() == len(found.names) - len(idle)
    assert np.abs(found.values[:, idle]).max() < 1e-12
    close(found.values, want, 1e-3)


@pytest.mark.slow_but("llama-*", "gpt2-*", "phi3-*", "gemma2-*")
@pytest.mark.parametrize(
    ("lora", "granularity"),
    [(lora, g) for lora in (False, True) for g in ("projection", "head_mlp", *(["rank"] if lora else []))],
)
@pytest.mark.parametrize("model_type", TYPES)
def test_adapter_scores_against_central_differences(model_type, lora, granularity):
    """-d/de of the loss with the unit's change at 1 + e, for every unit."""
    model, base = tuned_pair(made_family_model(model_type, WORDS))
    if lora:
        model = lora_on(model)
    prompts, eps = CLEAN.take(FEW), 1e-5
    with in_double(model):
        units = units_of(model, granularity)
        deltas = weight_deltas(model, {k: v.double() for k, v in base.items()}, units)
        got = adapter_scores(model, prompts, ANSWERS, units, deltas)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        sliced = {b.weight: b for b in units.branches}  # tied weights once
        want = np.zeros(got.shape)
        with torch.no_grad():
            kept = {name: parameters[name].clone() for name in sliced}
            for unit in range(len(units.names)):
                for e in (eps, -eps):
                    for name, branch in sliced.items():
                        change = kept[name] if lora else deltas[name]
                        member = torch.from_numpy(branch.unit == unit)
                        shape = [-1 if d == branch.dim else 1 for d in range(change.ndim)]
                        parameters[name].copy_(kept[name] + e * change * member.view(shape))
                    want[:, unit] -= losses(model, prompts).numpy() / (2 * eps) * np.sign(e)
            for name in sliced:
                parameters[name].copy_(kept[name])
    assert got.dtype == np.float64
    close(got, want, 1e-3)


@pytest.mark.slow_but("*-llama", "*-gpt2", "all-*")
@pytest.mark.parametrize("model_type", alike_soaked(TYPES))
@pytest.mark.parametrize("which", ["full", "all", 0, 1, 2])
def test_units_share_out_the_whole_of_the_change(model_type, which):
    """The sum over units is -sum(dW dL/dW) over all that fine-tuning changed, at every granularity."""
    model, base = tuned_pair(made_family_model(model_type, WORDS))
    if which != "full":
        model = lora_on(model, None if which == "all" else subsets(model_type)[which])
    with in_double(model):
        for p in model.parameters():
            p.requires_grad_(True)
        loss = losses(model, CLEAN)
        for granularity in GRANULARITIES if which == "full" else WITH_ADAPTER:
            units = units_of(model, granularity)
            deltas = weight_deltas(model, {k: v.double() for k, v in base.items()}, units)
            got = adapter_scores(model, CLEAN, ANSWERS, units, deltas, batch_size=4)
            if which == "full":
                change = deltas
                assert set(deltas) >= {n for n, _ in model.named_parameters()}
            else:
                change = {b.weight: model.get_parameter(b.weight).detach() for b in units.branches}
            parameters = [model.get_parameter(name) for name in change]
            for n in range(len(CLEAN)):
                grads = torch.autograd.grad(loss[n], parameters, retain_graph=True)
                total = -sum(float((d * g).sum()) for d, g in zip(change.values(), grads, strict=True))
                assert got[n].sum() == pytest.approx(total, rel=1e-9, abs=1e-12)


@pytest.mark.slow_but("llama*", "gpt2*", "gemma2*", "phi*")
@pytest.mark.parametrize(
    ("kind", "state"),
    [
        *((kind, "sdpa") for kind in (*TYPES, *WITH_LORA, *PARTLY, *DEEP, *MULTI_QUERY)),
        *((kind, "merged") for kind in WITH_LORA),
        *((kind, "eager") for kind in TYPES),
    ],
)
def test_patching_everything_is_the_corrupt_run_and_nothing_the_clean_one(kind, state):
    model = model_of_kind(kind, WORDS, attention="eager" if state == "eager" else None)
    if state == "merged":
        model.merge_adapter()
    names = set(sites_of(model).names)
    everything, nothing = patched_margins(model, CLEAN, CORRUPT, ANSWERS, [names, set()], batch_size=4)
    as_clean = Prompts(CORRUPT.ids, CORRUPT.offsets, CORRUPT.spans, CLEAN.label)
    for got, prompts in ((nothing, CLEAN), (everything, as_clean)):
        z = torch.from_numpy(score(model, prompts, ANSWERS))
        np.testing.assert_allclose(got, margin(z, LABEL).numpy(), atol=1e-5)
    assert np.abs(everything - nothing).max() > 1e-2


def findings(model, units, deltas, batch_size=64):
    """All that is computed of a model: margins, node scores, exact effects, adapter and path scores."""
    names = sites_of(model).names
    out = {
        "margins": score(model, CLEAN, ANSWERS, batch_size=batch_size),
        "atp": atp(model, CLEAN, CORRUPT, ANSWERS, batch_size=batch_size)[0],
        "exact": exact(model, CLEAN, CORRUPT, ANSWERS, names[::3], batch_size=batch_size),
        "atp_ig": atp_ig.score(model, CLEAN, CORRUPT, ANSWERS, steps=2, batch_size=batch_size).values,
        "relp": relp.score(model, CLEAN, CORRUPT, ANSWERS, batch_size=batch_size).values,
    }
    for name in EDGE_SCORERS:
        edges = edge_scores(
            model, CLEAN, CORRUPT, ANSWERS, scorer=name, batch_size=batch_size,
            **({"steps": 2} if name == "atp_ig" else {}),
        )  # fmt: skip
        out[f"edges {name}"] = edges.values
    if units is not None:
        out["adapter"] = adapter_scores(model, CLEAN, ANSWERS, units, deltas, batch_size=batch_size)
        out["path"] = path_scores(model, CLEAN, ANSWERS, units, deltas, steps=2, batch_size=batch_size)
    return out


def assert_same(got, want):
    for name, value in want.items():
        # Scores are sums of hundreds of products: the bound is meant relative to the largest.
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(got[name], value, atol=1e-5 * scale, rtol=0, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "lora"),
    [
        (t, lora) if (t, lora) in (("llama", False), ("gpt2", True), ("gemma2", True)) else soaked(t, lora)
        for lora in (True, False)
        for t in TYPES
    ],
)
def test_how_a_model_is_run_does_not_matter(model_type, lora):
    """Padding side, batches, gradient checkpointing (and training mode), attention kernel, merging."""
    model, base = tuned_pair(made_family_model(model_type, WORDS))
    model = lora_on(model) if lora else model
    units = units_of(model, "head_mlp")
    deltas = weight_deltas(model, base, units)
    want = findings(model, units, deltas)
    assert_same(findings(model, units, deltas, batch_size=1), want)
    with padded_on_the_left():
        assert_same(findings(model, units, deltas, batch_size=4), want)
    model.train()
    model.activation_checkpointing_enable()
    assert_same(findings(model, units, deltas), want)
    assert all(m.training for m in model.modules())
    model.activation_checkpointing_disable()
    model.eval()
    if model_type != "gemma2":
        model.set_attn_implementation("eager")
        assert_same(findings(model, units, deltas), want)
        model.set_attn_implementation("sdpa")
    if lora:
        weights = {n: p.clone() for n, p in model.named_parameters()}
        model.merge_adapter()
        merged = {n: p.clone() for n, p in model.named_parameters()}
        assert any(not torch.equal(weights[n], merged[n]) for n in weights)
        assert_same(findings(model, units, deltas), want)
        for n, p in model.named_parameters():
            assert torch.equal(p, merged[n]), n
        model.unmerge_adapter()
        plain = model.merge_and_unload()
        assert_same(
            findings(plain, None, None), {k: v for k, v in want.items() if k not in ("adapter", "path")}
        )


def values_of(score, /, **options):
    """A scorer's values, by the model alone."""
    return lambda model: score(model, CLEAN, CORRUPT, ANSWERS, **options).values


#: A score, and how many forward and backward passes it takes over the first layer.
CHECKPOINTED = {
    "atp": (values_of(atp_scorer.score), 2, 1),
    "atp_ig": (values_of(atp_ig.score, steps=2), 4, 2),
    "relp": (values_of(relp.score), 2, 1),
    "ig_node": (values_of(ig_node.score, steps=1), 12, 4),  # from above a layer nothing goes back to it
    "beside patched": (
        values_of(attribute, scorer="atp", patched={"layers.0.head.1", "layers.0.mlp"}),
        2,
        1,
    ),
    "adapter": (values_of(adapter.score), 1, 1),
    "edges atp": (values_of(edge_scores, scorer="atp"), 2, 1),
    "edges atp_ig": (values_of(edge_scores, scorer="atp_ig", steps=2), 4, 2),
    "edges relp": (values_of(edge_scores, scorer="relp"), 2, 1),
}


@pytest.mark.slow_but("llama-*", "gpt2-*")
@every_pair(model_type=["llama", "gpt2", "gemma2", "phi", "phi3"], name=CHECKPOINTED)
def test_layers_with_gradient_checkpointing_run_twice_and_give_the_same(model_type, name):
    score, forwards, backwards = CHECKPOINTED[name]
    model = lora_on(made_family_model(model_type, WORDS))
    first = family_of(model).layer_list(model)[0].get_submodule(family_of(model).attention_in)
    runs = []
    first.register_forward_hook(lambda *_: runs.append(1))
    with in_double(model):
        want = score(model)
        assert len(runs) == forwards
        runs.clear()
        model.activation_checkpointing_enable()
        for training in (False, True):
            model.train(training)
            got = score(model)
            assert len(runs) == forwards + backwards
            runs.clear()
            assert all(m.training == training for m in model.modules())
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.parametrize("model_type", few(TYPES, ("gpt2",)))
def test_half_precision_ranks_the_modules_alike(model_type):
    options = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8}
    options |= {"n_inner": 128} if model_type == "gpt2" else {"intermediate_size": 128}
    if model_type == "gemma3_text":
        options |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
    if model_type in ("llama", "qwen2", "phi", "phi3", "smollm2"):
        options |= {"num_key_value_heads": 4}
    clean, encoder = made_prompts(24)
    corrupt = other_titles(clean, WORDS)
    model = lora_on(made_family_model(model_type, WORDS, scale=0.08, **options))
    units = units_of(model, "projection")

    def found(model):
        pairs = (model, clean, corrupt, encoder.answers)
        nodes, names = atp(*pairs)
        assert len(names) == 36
        return {
            "atp": nodes,
            "relp": relp.score(*pairs).values,
            "atp_ig": atp_ig.score(*pairs).values,
            **{f"edges {name}": edge_scores(*pairs, scorer=name).values for name in EDGE_SCORERS},
            "adapter": adapter_scores(model, clean, encoder.answers, units, {}),
        }

    want = found(model)
    for name, got in found(copy.deepcopy(model).bfloat16()).items():
        assert got.dtype == np.float32
        assert spearmanr(got.mean(0), want[name].mean(0))[0] >= 0.98, name
