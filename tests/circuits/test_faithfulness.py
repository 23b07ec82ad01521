"""Metrics of circuits, on judges whose answers are known, and the same code over modules and edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec.circuits.activations import sites_of
from curerec.circuits.edge_core import find_edges
from curerec.circuits.edge_patching import edge_patched_margins
from curerec.circuits.faithfulness import (
    Faithfulness,
    areas,
    completeness,
    faithfulness,
    judge_edges,
    judge_modules,
    knockouts,
    minimality,
)
from curerec.circuits.patching import patched_margins
from curerec.circuits.selection import (
    above,
    greedy_order,
    pruned,
    ranking,
    sizes_to_judge,
    smallest_faithful,
    top_k,
)
from curerec.circuits.wiring import wiring_of
from curerec.errors import PromptError
from made_families import TYPES, made_family_model
from made_models import falling, made_model, made_prompts, other_titles

CLEAN, ENCODER = made_prompts(5)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)
WEIGHTS = np.array([4.0, 3.0, 2.0, 1.0, 0.0])


def additive(sets):
    """Margins of three pairs in which every element adds its weight."""
    return np.asarray([[WEIGHTS[list(s)].sum() + shift for shift in (-1, 0, 1)] for s in sets])


def backed_up(sets):
    """Elements 0 and 1 each carry the whole answer alone."""
    return np.asarray([[float(bool({0, 1} & set(s)))] * 2 for s in sets])


def test_additive_elements():
    f = Faithfulness(additive, 5)
    np.testing.assert_allclose(f.of([(), (0,), (0, 1), range(5)]), [0, 0.4, 0.7, 1])
    assert completeness(f, (0, 1)) == pytest.approx(0.7)
    np.testing.assert_allclose(minimality(f, (0, 1, 4)), [0.4, 0.3, 0.0])
    # Losing a part costs an additive circuit what it costs the model: what is outside stays outside.
    assert knockouts(f, (0, 1, 2, 3)) == pytest.approx(
        {"random": 0, "random_mean": 0, "greedy": 0}, abs=1e-12
    )


def test_a_missing_back_up_is_no_complete_circuit():
    f = Faithfulness(backed_up, 4)
    assert float(f.of([(0,)])[0]) == 1.0  # faithful ...
    assert completeness(f, (0,)) == 0.0  # ... and yet nothing is lost without it
    found = knockouts(f, (0,))
    assert found["greedy"] == found["random"] == 1.0
    both = knockouts(f, (0, 1))
    assert both["greedy"] == both["random"] == 0.0
    np.testing.assert_allclose(minimality(f, (0, 1)), 0)


def test_knock_outs_of_an_empty_circuit_and_pairs_that_move_nothing():
    f = Faithfulness(additive, 5)
    assert knockouts(f, ())["greedy"] == 0 and len(minimality(f, ())) == 0 and len(f.of([])) == 0
    ones = np.ones(3)
    assert np.isnan(faithfulness(ones, ones, ones))


def test_areas_by_hand():
    curve = [(0, 0.0), (1, 2.0), (2, 1.0)]
    cpr, cmd = areas(curve)
    assert cpr == pytest.approx(1.25) and cmd == pytest.approx(0.75)
    assert areas([(0, 0.0), (10, 1.0)]) == pytest.approx((0.5, 0.5))
    assert areas([(0, 1.0), (10, 1.0)]) == pytest.approx((1.0, 0.0))


def test_selection_of_scores():
    scores = np.array([[1.0, -6.0, 0.2, 3.0], [1.0, -4.0, -0.2, 3.0]])
    assert ranking(scores).tolist() == [1, 3, 0, 2]
    assert top_k(scores, 2) == (1, 3) and above(scores, 1.0) == (1, 3, 0) and above(scores, 9.0) == ()
    curve = [(0, 0.0), (1, 0.95), (2, 0.5), (3, 1.0)]
    assert smallest_faithful(curve, 0.9) == 1 and smallest_faithful(curve, 0.99) == 3
    assert smallest_faithful(curve, 2.0) == 3
    assert sizes_to_judge(3) == [0, 1, 2, 3]
    many = sizes_to_judge(5000)
    assert many[0] == 0 and many[-1] == 5000 and len(many) <= 34 and many == sorted(set(many))


def test_the_two_judges_agree_where_they_ask_the_same():
    model = made_model(WORDS)
    wiring = wiring_of(model)
    names = wiring.sources[1:]
    modules = judge_modules(model, CLEAN, CORRUPT, ANSWERS, names)
    edges = judge_edges(model, CLEAN, CORRUPT, ANSWERS)
    source, _ = np.nonzero(wiring.mask)
    kept = [0, 3, 4, 7]
    all_of = [k for k, s in enumerate(source) if s == 0 or s - 1 in kept]
    total = int(wiring.mask.sum())
    np.testing.assert_allclose(edges([range(total)]), modules([range(len(names))]), atol=1e-5)
    np.testing.assert_allclose(edges([()]), modules([()]), atol=2e-5)
    want = patched_margins(
        model, CLEAN, CORRUPT, ANSWERS, [{n for k, n in enumerate(names) if k not in kept}]
    )
    np.testing.assert_allclose(modules([kept]), want, atol=1e-6)
    # All edges of the kept sources, and none of the others: the others' writes are corrupt for every reader.
    np.testing.assert_allclose(edges([all_of]), want, atol=2e-5)


def reachable(edges, wiring):
    """Whether every edge lies on a path from input to logits, searched in the plain way."""
    source, reader = np.nonzero(wiring.mask)
    pairs = [(wiring.sources[source[k]], wiring.readers[reader[k]]) for k in edges]
    forward, backward = {"input"}, {"logits"}
    for _ in range(len(pairs) + 1):
        for s, r in pairs:
            if s in forward:
                forward |= {r, *wiring.modules_of(r)}
            if r in backward or set(wiring.modules_of(r)) & backward:
                backward.add(s)
    return all(s in forward and (r == "logits" or set(wiring.modules_of(r)) & backward) for s, r in pairs)


@pytest.mark.parametrize("model_type", ["llama", "phi", "gpt2"])
def test_greedy_circuits_are_connected_and_pruning_changes_no_run(model_type):
    model = made_family_model(model_type, WORDS)
    wiring = wiring_of(model)
    total = int(wiring.mask.sum())
    rng = np.random.default_rng(0)
    mean = rng.normal(size=total)
    order = list(greedy_order(mean, wiring))
    assert sorted(order) == list(range(total))
    assert pruned(order, wiring) == tuple(order)
    for n in (3, 8, 15, 30, 60):
        core = pruned(order[:n], wiring)
        assert set(core) <= set(order[:n]) and reachable(core, wiring)
        scattered = rng.permutation(total)[:n]
        assert reachable(pruned(scattered, wiring), wiring)
        masks = []
        for kept in (scattered, pruned(scattered, wiring)):
            patched = wiring.mask.copy()
            source, reader = np.nonzero(wiring.mask)
            patched[source[list(kept)], reader[list(kept)]] = False
            masks.append(patched)
        one, two = edge_patched_margins(model, CLEAN, CORRUPT, ANSWERS, masks)
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_pruning_by_hand():
    wiring = wiring_of(made_model(WORDS, layers=2))
    source, reader = np.nonzero(wiring.mask)
    at = {
        (wiring.sources[s], wiring.readers[r]): k for k, (s, r) in enumerate(zip(source, reader, strict=True))
    }
    path = [
        at["input", "layers.0.kv.1.v"],
        at["layers.0.head.3", "layers.1.mlp"],
        at["layers.1.mlp", "logits"],
    ]
    assert pruned(path, wiring) == tuple(path)
    assert pruned(path[1:], wiring) == () and pruned(path[:2], wiring) == ()
    dangling = at["input", "layers.1.head.0.q"]
    assert pruned([dangling, *path], wiring) == tuple(path)


@pytest.mark.slow_but("llama", "phi", "phi3", "gemma2", "qwen3")
@pytest.mark.parametrize("model_type", TYPES)
def test_edge_circuits_of_every_family(model_type):
    model = made_family_model(model_type, WORDS)
    clean, corrupt = falling(model, CLEAN, CORRUPT, ANSWERS)
    circuit = find_edges(
        model, clean, corrupt, ANSWERS, scorer="atp", draws=4, sizes=6, details=model_type == "gpt2"
    )
    assert circuit.curve[0] == (0, pytest.approx(0, abs=1e-5))
    assert circuit.curve[-1] == (len(circuit.source), pytest.approx(1, abs=1e-5))
    assert circuit.faithfulness >= 0.9 and reachable(circuit.core, wiring_of(model))
    assert 0 <= circuit.jaccard <= 1 and np.isfinite([circuit.cpr, circuit.cmd, circuit.completeness]).all()
    assert len(circuit.minimality) == (len(circuit.core) if model_type == "gpt2" else 0)


@pytest.mark.parametrize("of", [judge_modules, judge_edges])
def test_pairs_that_move_by_rounding_alone_are_refused(of):
    """The counterfactual differs in a token whose embedding differs by 1e-7: the margin's change is noise."""
    model = made_model(WORDS, tied=False)
    ids = CLEAN.ids.copy()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[WORDS - 1] = table[ids[0]] * (1 + 1e-7)
    ids[ids == ids[0]] = WORDS - 1
    corrupt = replace(CLEAN, ids=ids)
    total = len(sites_of(model).names) if of is judge_modules else int(wiring_of(model).mask.sum())
    names = [sites_of(model).names] if of is judge_modules else []
    judge = of(model, CLEAN, corrupt, ANSWERS, *names)
    full, empty = judge([range(total), ()])
    assert 0 < np.abs(full - empty).max() < 1e-4
    with pytest.raises(PromptError, match=r"none of the 5 judging pairs moved the answer by more than 0.001"):
        Faithfulness(judge, total)


def test_pairs_that_raise_the_margin_are_refused():
    with pytest.raises(PromptError, match=r"5 judging pairs do not lower the margin.*moving_pairs"):
        Faithfulness(lambda sets: -np.repeat([[len(s)] for s in sets], 5, axis=1), 4)
    f = faithfulness(np.array([0.0, 1.0]), np.array([0.5, 0.6]), np.array([0.0, 1.0]))
    assert np.isnan(f)  # one falls by .4, the other rises by .5
    assert np.isnan(faithfulness(np.ones(3) + 5e-4, np.ones(3), np.ones((2, 3)), axis=0)).all()


def test_edges_of_pairs_that_move_nothing_and_of_one_pair_are_refused():
    model = made_model(WORDS)
    with pytest.raises(PromptError, match="moved the answer"):
        find_edges(model, CLEAN, CLEAN, ANSWERS, draws=4, sizes=4)
    one = CLEAN.take(np.array([0]))
    with pytest.raises(PromptError, match="fewer than two"):
        find_edges(model, one, one, ANSWERS)
