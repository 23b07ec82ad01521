"""Edge scores against the node scores they add up to, and against edges patched one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from curerec.circuits import edge_taps
from curerec.circuits import edges as edges_module
from curerec.circuits.edge_patching import edge_patched_margins, exact_edges
from curerec.circuits.edges import EDGE_SCORERS, edge_scores
from curerec.circuits.patching import patched_margins
from curerec.circuits.scorers import atp, atp_ig, relp
from curerec.circuits.wiring import NormAt, weight_of, wiring_of
from curerec.errors import ConfigError
from made_cases import alike_soaked, every_pair
from made_double import doubled
from made_families import (
    DEEP,
    MULTI_QUERY,
    PARTLY,
    TYPES,
    WITH_LORA,
    in_double,
    made_family_model,
    model_of_kind,
)
from made_models import made_model, made_prompts, other_titles, with_lora

CLEAN, ENCODER = made_prompts(4)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)
NODES = {"atp": atp.score, "atp_ig": atp_ig.score, "relp": relp.score}
LLAMA = made_model(WORDS)


KINDS = [*TYPES, *WITH_LORA, *PARTLY, *DEEP, *MULTI_QUERY]


@pytest.mark.slow_but("llama*-atp", "llama*-relp", "gpt2*", "phi3*", "gemma2-*")
@pytest.mark.parametrize("scorer", EDGE_SCORERS)
@pytest.mark.parametrize("kind", alike_soaked(KINDS))
def test_a_sources_edges_add_up_to_its_node_score(kind, scorer):
    with in_double(model_of_kind(kind, WORDS)) as model:
        edges = edge_scores(model, CLEAN, CORRUPT, ANSWERS, scorer=scorer, batch_size=3)
        nodes = NODES[scorer](model, CLEAN, CORRUPT, ANSWERS)
    assert edges.values.dtype == np.float64 and edges.sources == ("input", *nodes.names)
    want = np.concatenate([nodes.embedding[:, None], nodes.values], 1)
    np.testing.assert_allclose(edges.of_sources(), want, atol=1e-10, rtol=1e-10)
    assert np.abs(want).max(0).min() > 1e-6
    if kind in DEEP:
        assert edges.values.shape[1] == wiring_of(model).mask.sum() > 500
    assert (
        nodes.cost.forward_equivalents <= edges.cost.forward_equivalents <= (13 if scorer == "atp_ig" else 5)
    )


@pytest.mark.slow_but("llama", "llama+lora", "llama+mqa", "gpt2", "gpt2+lora", "phi", "phi3", "gemma2")
@pytest.mark.parametrize("kind", alike_soaked(KINDS))
def test_edge_scores_against_central_differences(kind):
    with in_double(model_of_kind(kind, WORDS)) as model:
        got = edge_scores(model, CLEAN, CORRUPT, ANSWERS)
        mask = wiring_of(model).mask
        eps = 1e-5
        rng = np.random.default_rng(0)
        chosen = rng.permutation(len(got.source))[:24]
        sets = []
        for k in chosen:
            one = np.zeros_like(mask)
            one[got.source[k], got.reader[k]] = True
            sets.append(one)
        up, down = (
            edge_patched_margins(model, CLEAN, CORRUPT, ANSWERS, sets, share=e).T for e in (eps, -eps)
        )
    scale = np.abs(got.values).max()
    np.testing.assert_allclose(got.values[:, chosen], (up - down) / (2 * eps), rtol=1e-6, atol=1e-7 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_all_edges_patched_is_the_corrupt_run_and_none_the_clean_one(kind):
    model = model_of_kind(kind, WORDS)
    wiring = wiring_of(model)
    nothing, everything = np.zeros_like(wiring.mask), np.ones_like(wiring.mask)
    got = edge_patched_margins(model, CLEAN, CORRUPT, ANSWERS, [nothing, everything], batch_size=3)
    want = patched_margins(model, CLEAN, CORRUPT, ANSWERS, [set(), set(wiring.sources[1:])])
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("module", ["layers.0.head.1", "layers.0.mlp", "layers.1.head.3", "layers.1.mlp"])
def test_all_edges_of_a_node_patched_is_the_node_patched(module):
    model = doubled(with_lora(made_model(WORDS)))
    wiring = wiring_of(model)
    patched = np.zeros_like(wiring.mask)
    patched[wiring.sources.index(module)] = True
    got = edge_patched_margins(model, CLEAN, CORRUPT, ANSWERS, [patched])
    want = patched_margins(model, CLEAN, CORRUPT, ANSWERS, [{module}])
    np.testing.assert_allclose(got, want, atol=1e-10)


def test_exact_edges_are_near_their_first_order_where_the_change_is_small():
    model = doubled(LLAMA)
    found = exact_edges(model, CLEAN, CORRUPT, ANSWERS)
    first = edge_scores(model, CLEAN, CORRUPT, ANSWERS).values
    assert found.shape == first.shape
    assert np.corrcoef(found.mean(0), first.mean(0))[0, 1] > 0.5


def test_who_comes_before_whom():
    wiring = wiring_of(made_model(WORDS, heads=4, kv=2, layers=2))
    mask = {
        (s, r): bool(wiring.mask[i, j])
        for i, s in enumerate(wiring.sources)
        for j, r in enumerate(wiring.readers)
    }
    assert len(wiring.sources) == 1 + 2 * 5 and len(wiring.readers) == 2 * (4 + 2 + 2 + 1) + 1
    assert mask["input", "layers.0.head.2.q"] and mask["layers.0.head.0", "layers.0.mlp"]
    assert not mask["layers.0.head.0", "layers.0.kv.1.v"] and not mask["layers.0.mlp", "layers.0.mlp"]
    assert mask["layers.0.mlp", "layers.1.kv.1.k"] and mask["layers.1.mlp", "logits"]
    assert not mask["layers.1.head.0", "layers.0.mlp"]
    assert wiring.readers_of("layers.1.head.3") == ("layers.1.head.3.q", "layers.1.kv.1.k", "layers.1.kv.1.v")
    assert wiring.modules_of("layers.1.kv.1.k") == ("layers.1.head.2", "layers.1.head.3")


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_reading_through_a_norm_against_autograd(norm):
    from made_double import DoubleNorm

    torch.manual_seed(0)
    module = DoubleNorm(torch.randn(6), 1e-5) if norm == "rms" else torch.nn.LayerNorm(6)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(6))
    module = module.double()
    x, delta, grad = (torch.randn(2, 3, 6, dtype=torch.float64) for _ in range(3))
    at = NormAt.of(module, x)
    bias = getattr(module, "bias", None)
    torch.testing.assert_close(at.value(bias), module(x))
    torch.testing.assert_close(at.pushed(delta), torch.func.jvp(module, (x,), (delta,))[1])
    torch.testing.assert_close(at.pulled(grad), torch.func.vjp(module, x)[1](grad)[0])
    fixed = NormAt.of(module, x, fixed_scale=True)
    torch.testing.assert_close((fixed.pushed(delta) * grad).sum(), (delta * fixed.pulled(grad)).sum())
    small, rows = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(5, 4, 6, dtype=torch.float64)
    whole = torch.einsum("btnw,nwd->nbtd", small, rows)
    for norm in (at, fixed):
        out = torch.empty_like(whole)
        norm.pulled_through(small, norm.read_by(rows), out=out)
        torch.testing.assert_close(out, norm.pulled(whole))


@every_pair(model_type=["gpt2", "llama", "gemma2", "phi"], scorer=EDGE_SCORERS)
def test_edges_do_not_depend_on_whether_the_last_layer_is_cut(model_type, scorer, monkeypatch):
    with in_double(made_family_model(model_type, WORDS)) as model:
        assert edges_module.can_be_lean(model)  # or both would be the whole pass
        cut = edge_scores(model, CLEAN, CORRUPT, ANSWERS, scorer=scorer).values
        monkeypatch.setattr(edges_module, "can_be_lean", lambda model: False)
        whole = edge_scores(model, CLEAN, CORRUPT, ANSWERS, scorer=scorer).values
    np.testing.assert_allclose(cut, whole, atol=1e-12 * np.abs(whole).max())


@pytest.mark.parametrize("kind", ["gpt2", "llama+lora", "gemma2", "phi"])
def test_edges_do_not_depend_on_how_many_examples_are_met_at_a_time(kind, monkeypatch):
    with in_double(model_of_kind(kind, WORDS)) as model:
        together = edge_scores(model, CLEAN, CORRUPT, ANSWERS, batch_size=4).values
        monkeypatch.setattr(edge_taps, "CACHED", 1)
        monkeypatch.setattr(edge_taps, "LEAST_ROWS", 1)
        assert len(list(edge_taps.pieces(torch.zeros(4, 9, 16), 1))) == 4
        alone = edge_scores(model, CLEAN, CORRUPT, ANSWERS, batch_size=4).values
    np.testing.assert_allclose(alone, together, atol=1e-12 * np.abs(together).max())


def test_the_effective_weight_holds_the_adapter():
    model = with_lora(made_model(WORDS))
    module = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    x = torch.randn(3, 16)
    torch.testing.assert_close(module(x), x @ weight_of(module).T)
    with model.disable_adapter():
        torch.testing.assert_close(module(x), x @ weight_of(module).T)
    model.merge_adapter()
    torch.testing.assert_close(module(x), x @ weight_of(module).T)


def test_a_scorer_without_edges_is_refused():
    with pytest.raises(ConfigError, match=r"'exact'.*has no edge scores.*atp_ig"):
        edge_scores(LLAMA, CLEAN, CORRUPT, ANSWERS, scorer="exact")


class Sizes(TorchDispatchMode):
    """Sizes of all tensors made inside that hold states of the residual stream."""

    def __init__(self, width):
        super().__init__()
        self.width, self.seen = width, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Not the table of scores itself, which has an entry for every edge.
        if isinstance(out, torch.Tensor) and out.ndim > 2 and out.shape[-1] == self.width:
            self.seen.append(out.numel())
        return out


def test_no_tensor_grows_with_the_number_of_sources():
    """One source layer at a time: the largest product of a deep model is that of a shallow one."""
    largest = {}
    for layers in (2, 6):
        model = made_model(WORDS, layers=layers)
        with Sizes(model.config.hidden_size) as sizes:
            edge_scores(model, CLEAN, CORRUPT, ANSWERS)
        largest[layers] = max(sizes.seen)
    assert largest[2] == largest[6]
