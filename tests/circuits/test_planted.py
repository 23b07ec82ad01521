"""Planted circuits: every scorer must find exactly what was planted; random weights must not pass."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curerec.circuits import SCORERS
from curerec.circuits.activations import layer_of, recording, site_of, sites_of
from curerec.circuits.core import find_core
from curerec.circuits.edge_core import find_edges
from curerec.circuits.edges import edge_scores
from curerec.circuits.patching import patched_margins
from curerec.circuits.selection import above
from curerec.recommender.score import answer_logits, to_batch
from curerec.testing.planted import KINDS, SILENT, check_scorer, planted, recovery
from made_cases import few

#: Twenty seeds of each kind take a minute; every run takes the first few.
SEEDS = [pytest.param(4, id="few"), pytest.param(20, id="twenty", marks=pytest.mark.soak)]


@pytest.mark.slow_but("atp-few", "relp-few")
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", [n for n in SCORERS if n not in ("adapter", "ig_node")])
def test_every_scorer_tells_the_circuit_from_the_rest(name, seeds):
    check_scorer(SCORERS[name], seeds=seeds)


@pytest.mark.slow
def test_integrated_gradients_by_node_do_so_too():
    check_scorer(SCORERS["ig_node"], seeds=1, steps=3)


@pytest.mark.parametrize("seeds", SEEDS)
def test_the_adapter_scorer_does_so_too(seeds):
    for kind in KINDS:
        for seed in range(seeds):
            truth = planted(kind, seed=seed)
            found = SCORERS["adapter"](
                truth.model, truth.clean, truth.corrupt, truth.answers, base_state=truth.base_state
            )
            result = recovery(truth, found.names, found.values)
            assert result.auroc > 1 - 1e-9 and result.others == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_gates_do_what_they_are_called(kind):
    truth = planted(kind, seed=3)
    one, *_ = sorted(truth.modules)
    whole, none, less = patched_margins(
        truth.model, truth.clean, truth.corrupt, truth.answers, [set(), set(truth.modules), {one}]
    ).mean(1)
    assert whole > 2 and none < 0.1
    if kind == "or":
        assert less > 2  # the other arm carries it
    else:
        assert less < 0.1


@pytest.mark.slow_but("or-few", "head-few")
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_selection_is_the_planted_circuit(kind, seeds):
    found = []
    for seed in range(seeds):
        truth = planted(kind, seed=seed)
        if kind == "or":  # the smallest faithful circuit is one arm of it; scores alone show both
            scores = SCORERS["atp_ig"](truth.model, truth.clean, truth.corrupt, truth.answers)
            names, selected = scores.names, {scores.names[k] for k in above(scores.values, 0.1)}
        else:
            circuit = find_core(truth.model, truth.clean, truth.corrupt, truth.answers, draws=4)
            names, selected = circuit.modules, {circuit.modules[k] for k in circuit.core}
            assert circuit.faithfulness > 0.99 and circuit.completeness > 0.99
        found.append(recovery(truth, names, np.ones((1, len(names))), selected))
    assert np.mean([r.precision for r in found]) >= 0.95
    assert np.mean([r.recall for r in found]) >= 0.95


@pytest.mark.slow_but("or-few")
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("kind", few(KINDS, ("or", "two_step")))
def test_the_edges_are_those_of_the_planted_path(kind, seeds):
    precision, recall = [], []
    for seed in range(seeds):
        truth = planted(kind, seed=seed)
        if kind == "or":  # as above: the smallest faithful circuit is one arm
            scores = edge_scores(truth.model, truth.clean, truth.corrupt, truth.answers, scorer="atp_ig")
            selected = {scores.names[k] for k in above(scores.values, 0.1)}
        else:
            circuit = find_edges(truth.model, truth.clean, truth.corrupt, truth.answers, draws=4)
            selected = {circuit.names[k] for k in circuit.core}
            assert circuit.faithfulness >= 0.9
        hit = len(selected & truth.edges)
        precision.append(hit / len(selected))
        recall.append(hit / len(truth.edges))
    assert np.mean(precision) >= 0.95 and np.mean(recall) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_edges_that_are_not_planted_score_nothing(kind):
    truth = planted(kind, seed=1)
    found = edge_scores(truth.model, truth.clean, truth.corrupt, truth.answers, scorer="atp_ig")
    size = np.abs(found.values).max(0)
    for name, score in zip(found.names, size, strict=True):
        if name not in truth.edges:
            assert score < SILENT * size.max(), name
    top = np.argsort(-np.abs(found.values.mean(0)))[: len(truth.edges)]
    assert {found.names[k] for k in top} == truth.edges


def activations(truth):
    """What every module writes to the residual stream in both runs, by name: two of [n, pos, d_model]."""
    model, sites = truth.model, sites_of(truth.model)
    runs = []
    for prompts in (truth.clean, truth.corrupt):
        ids, last = to_batch(prompts, np.arange(len(prompts)), torch.device("cpu"))
        with torch.no_grad(), recording(sites) as seen:
            answer_logits(model, ids, last, truth.answers)
        runs.append(seen)
    out = {}
    for name in sites.names:
        values = [sites.per_head(a[site_of(name)]) if ".head." in name else a[name] for a in runs]
        if ".head." in name:
            layer, head = layer_of(name), int(name.rsplit(".", 1)[1])
            weight = model.model.layers[layer].self_attn.o_proj.weight.detach()
            columns = weight.unflatten(1, (sites.n_heads, -1))[:, head]
            values = [v[:, :, head] @ columns.T for v in values]
        out[name] = values
    return out


def by_size(of):
    """A scorer that measures the modules alone: no margin enters."""

    def scorer(model, clean, corrupt, answers):
        truth = SimpleNamespace(model=model, clean=clean, corrupt=corrupt, answers=answers)
        found = activations(truth)
        return SimpleNamespace(names=tuple(found), values=np.stack([of(*v) for v in found.values()], 1))

    return scorer


def norm_of(x):
    return x.norm(dim=-1).sum(1).numpy()


def weight_norm(model, clean, corrupt, answers):
    names, sizes = sites_of(model).names, []
    for name in names:
        layer = model.model.layers[layer_of(name)]
        if ".head." in name:
            sizes.append(
                layer.self_attn.o_proj.weight.detach().unflatten(1, (4, -1))[:, int(name[-1])].norm()
            )
        else:
            sizes.append(layer.mlp.down_proj.weight.detach().norm())
    return SimpleNamespace(names=names, values=np.tile(np.asarray(sizes), (len(clean), 1)))


def times(factor):
    def scorer(model, clean, corrupt, answers):
        found = SCORERS["atp"](model, clean, corrupt, answers)
        return SimpleNamespace(names=found.names, values=factor * found.values)

    return scorer


def unsigned(model, clean, corrupt, answers):
    found = SCORERS["atp"](model, clean, corrupt, answers)
    return SimpleNamespace(names=found.names, values=np.abs(found.values))


BLIND = {
    "write norm": by_size(lambda good, bad: norm_of(good)),
    "change of the write": by_size(lambda good, bad: norm_of(bad - good)),
    "weight norm": weight_norm,
    "-3 atp": times(-3),
    "3 atp": times(3),
    "atp / 3": times(1 / 3),
    "|atp|": unsigned,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BLIND)
def test_a_scorer_that_does_not_measure_effects_is_caught(name, kind):
    why = r"wrong sign|times its exact effect" if "atp" in name else r"AUROC|silent module"
    with pytest.raises(AssertionError, match=why):
        check_scorer(BLIND[name], seeds=1, kinds=[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_all_modules_look_alike_from_outside(kind):
    """Of five models not one has its circuit at the top by the size of what it writes, or of its weights."""
    ranks = []
    for seed in range(5):
        truth = planted(kind, seed=seed)
        for scorer in (BLIND["write norm"], weight_norm):
            found = scorer(truth.model, truth.clean, truth.corrupt, truth.answers)
            ranks.append(recovery(truth, found.names, found.values))
    assert min(r.others for r in ranks) > 0.1  # what is not planted is no smaller than a tenth
    assert np.mean([r.auroc for r in ranks]) < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_planted_writes_differently_and_changes_nothing(kind):
    truth = planted(kind, seed=2)
    found = activations(truth)
    others = set(found) - truth.modules
    for name in others:
        good, bad = found[name]
        assert float(good.norm(dim=-1).mean()) > 1 and float((bad - good).norm(dim=-1).sum(1).min()) > 1, name
        assert not bool(good[..., :20].any())
    whole, without = patched_margins(
        truth.model, truth.clean, truth.corrupt, truth.answers, [set(), set(others)]
    )
    assert np.abs(whole - without).max() < 1e-5 * np.abs(whole).max()


def test_random_scores_and_random_weights_fail_the_claim():
    rng = np.random.default_rng(0)

    def random_scores(model, clean, corrupt, answers):
        names = SCORERS["atp"](model, clean, corrupt, answers).names
        return SimpleNamespace(names=names, values=rng.normal(size=(len(clean), len(names))))

    with pytest.raises(AssertionError, match="AUROC"):
        check_scorer(random_scores, seeds=2)

    def on_random_weights(model, clean, corrupt, answers):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        return SCORERS["atp"](model, clean, corrupt, answers)

    with pytest.raises(AssertionError, match=r"AUROC|silent module"):
        check_scorer(on_random_weights, seeds=2)


def test_a_scorer_that_misses_one_module_is_caught():
    def forgets(model, clean, corrupt, answers):
        found = SCORERS["exact"](model, clean, corrupt, answers)
        values = found.values.copy()
        values[:, np.abs(values.mean(0)).argmax()] = 0
        return SimpleNamespace(names=found.names, values=values)

    with pytest.raises(AssertionError, match="AUROC"):
        check_scorer(forgets, seeds=1)
