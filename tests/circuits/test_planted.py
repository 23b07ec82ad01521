"""Planted circuits: every scorer must find exactly what was planted; random weights must not pass."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curerec.circuits import SCORERS
from curerec.circuits.core import find_core
from curerec.circuits.edge_core import find_edges
from curerec.circuits.edges import edge_scores
from curerec.circuits.patching import patched_margins
from curerec.circuits.selection import above
from curerec.testing.planted import KINDS, check_scorer, planted, recovery

#: Twenty seeds of each kind take a minute; every run takes the first few.
SEEDS = [pytest.param(4, id="few"), pytest.param(20, id="twenty", marks=pytest.mark.soak)]


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("name", [n for n in SCORERS if n not in ("adapter", "ig_node")])
def test_every_scorer_tells_the_circuit_from_the_rest(name, seeds):
    check_scorer(SCORERS[name], seeds=seeds)


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
            assert result.auroc == 1.0 and result.others == 0.0


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


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "or"])
def test_the_edges_are_those_of_the_planted_path(kind):
    precision, recall = [], []
    for seed in range(3):
        truth = planted(kind, seed=seed)
        circuit = find_edges(truth.model, truth.clean, truth.corrupt, truth.answers, draws=4)
        selected = {circuit.names[k] for k in circuit.core}
        hit = len(selected & truth.edges)
        precision.append(hit / len(selected))
        recall.append(hit / len(truth.edges))
        assert circuit.faithfulness >= 0.9
    assert np.mean(precision) >= 0.95 and np.mean(recall) >= 0.95


def test_edges_of_silent_modules_score_nothing():
    truth = planted("two_step", seed=1)
    found = edge_scores(truth.model, truth.clean, truth.corrupt, truth.answers, scorer="atp_ig")
    size = np.abs(found.values).max(0)
    for name, score in zip(found.names, size, strict=True):
        source, _ = name.split("->")
        if source != "input" and source not in truth.modules:
            assert score == 0, name
    top = np.argsort(-np.abs(found.values.mean(0)))[: len(truth.edges)]
    assert {found.names[k] for k in top} == truth.edges


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
