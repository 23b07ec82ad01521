"""Circuits of edges that resamples do not overturn: more pairs, then whole blocks, and the record of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from curerec.circuits import edge_core
from curerec.circuits.edge_core import find_edges, stable_edges
from curerec.circuits.exchange import VERSION, shape_of, to_file
from curerec.circuits.faithfulness import Faithfulness, judge_edges
from curerec.circuits.passes import Cost
from curerec.circuits.selection import JUDGED, greedy_order, halves, pruned
from curerec.circuits.stability import bootstrap_intervals
from curerec.circuits.wiring import of_blocks, wiring_of
from curerec.reports import circuit_page
from made_core import found_circuit
from made_families import TYPES, made_family_model
from made_models import falling, made_model, made_prompts, other_titles

CLEAN, ENCODER = made_prompts(8)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CLEAN, CORRUPT = falling(made_model(WORDS), CLEAN, other_titles(CLEAN, WORDS), ANSWERS)


def block(name):
    """The block of a source or reader, spelled out the plain way."""
    parts = name.split(".")
    return ".".join("0" if k == 3 else part for k, part in enumerate(parts))


@pytest.mark.parametrize("model_type", TYPES)
def test_the_graph_of_blocks(model_type):
    """Its edges are the model's edges with the number of the head left out, each of them once."""
    wiring = wiring_of(made_family_model(model_type, WORDS))
    blocks, source_block, reader_block = of_blocks(wiring)
    fine = {(s, r) for s, r in zip(*np.nonzero(wiring.mask), strict=True)}
    coarse = {(block(wiring.sources[s]), block(wiring.readers[r])) for s, r in fine}
    assert coarse == {
        (blocks.sources[s], blocks.readers[r]) for s, r in zip(*np.nonzero(blocks.mask), strict=True)
    }
    assert [blocks.sources[k] for k in source_block] == [block(s) for s in wiring.sources]
    assert [blocks.readers[k] for k in reader_block] == [block(r) for r in wiring.readers]
    for name in blocks.sources[1:]:
        assert set(blocks.readers_of(name)) == {block(r) for r in wiring.readers_of(name)}
    for name in blocks.readers:
        assert set(blocks.modules_of(name)) <= set(blocks.sources)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi"])
def test_edges_of_a_block_are_taken_together(model_type):
    model = made_family_model(model_type, WORDS)
    wiring = wiring_of(model)
    pair = falling(model, CLEAN, CORRUPT, ANSWERS)
    circuit = find_edges(
        model, *pair, ANSWERS, scorer="atp", granularity="block", threshold=0.5, draws=4, sizes=12
    )
    assert circuit.granularity == "block" and 0 <= circuit.jaccard <= 1
    assert len(set(circuit.core)) == len(circuit.core)
    inside = {(block(s), block(r)) for s, r in (circuit.names[k].split("->") for k in circuit.core)}
    for k, name in enumerate(circuit.names):
        assert (k in circuit.core) == (tuple(map(block, name.split("->"))) in inside)
    assert circuit.curve[0][0] == 0 and circuit.curve[-1] == (len(circuit.names), pytest.approx(1, abs=1e-5))
    assert circuit.faithfulness >= 0.5
    assert {s for s, _ in inside} >= {"input"} and wiring.readers[-1] in {r for _, r in inside}


def test_single_edges_are_what_they_were():
    """A model whose layers have one head each has blocks of one: both granularities are the same search."""
    model = made_model(WORDS, heads=1, kv=1)
    found = [
        find_edges(model, CLEAN, CORRUPT, ANSWERS, scorer="atp", granularity=g, threshold=0.5, draws=4)
        for g in ("head_mlp", "block")
    ]
    assert found[0].core == found[1].core and found[0].curve == found[1].curve
    assert found[0].jaccard == found[1].jaccard


def test_the_fall_back_is_in_the_record(monkeypatch):
    """More pairs first, then blocks; and where nothing helps the last word is a warning."""
    model = made_model(WORDS)
    asked = []

    def overlap(member):
        asked.append(member.shape[1])
        return 0.25 if len(asked) < 3 else 0.3

    monkeypatch.setattr(edge_core, "paired_overlap", overlap)
    monkeypatch.setattr(edge_core, "chance_jaccard", lambda *a: 0.0)
    circuit = stable_edges(model, CLEAN, CORRUPT, ANSWERS, start=4, scorer="atp", draws=4, sizes=4)
    assert asked[0] == asked[1] > asked[2] and len(asked) == 3
    assert circuit.granularity == "block" and len(circuit.scores) == len(CLEAN)
    assert [n for n in circuit.notes if "went on with 8" in n] and "not stable" in circuit.notes[-1]
    whole = replace(found_circuit(), edges=circuit)
    file = to_file(whole, shape_of(wiring_of(model), model.config.hidden_size))
    assert file.edges_granularity == "block" and file.edges_pairs == len(CLEAN)
    assert file.notes[-1].startswith("connections: ")
    assert "all heads of a layer together" in circuit_page.render_circuit(file.model_dump(mode="json"))


def test_stable_at_once(monkeypatch):
    monkeypatch.setattr(edge_core, "paired_overlap", lambda member: 0.8)
    monkeypatch.setattr(edge_core, "chance_jaccard", lambda *a: 0.1)
    circuit = stable_edges(
        made_model(WORDS), CLEAN, CORRUPT, ANSWERS, start=4, scorer="atp", draws=4, sizes=4
    )
    assert circuit.granularity == "head_mlp" and len(circuit.scores) == 4 and circuit.notes == ()


def test_each_pair_is_scored_once(monkeypatch):
    """However often the circuit is looked for anew; and it is the one that a search by itself finds."""
    model, taken = made_model(WORDS), []
    whole = edge_core.edge_scores

    def counting(model, clean, *rest, **named):
        taken.append(len(clean))
        return whole(model, clean, *rest, **named)

    monkeypatch.setattr(edge_core, "edge_scores", counting)
    monkeypatch.setattr(edge_core, "paired_overlap", lambda member: 0.1)
    circuit = stable_edges(model, CLEAN, CORRUPT, ANSWERS, start=2, scorer="atp", draws=4, sizes=4)
    assert taken == [2, 2, 4] and sum(taken) == len(CLEAN)
    alone = find_edges(model, CLEAN, CORRUPT, ANSWERS, scorer="atp", draws=4, sizes=4)
    np.testing.assert_allclose(circuit.scores, alone.scores, rtol=0, atol=1e-5)
    assert circuit.core == alone.core
    np.testing.assert_allclose(circuit.curve, alone.curve, rtol=0, atol=1e-5)


def test_costs_add_up():
    a, b = Cost(4, 8, 4, 2, 1, None), Cost(2, 4, 2, 1, 0, 7)
    assert a.with_more(b) == Cost(6, 12, 6, 1, 1, 7) and a.with_more(a).peak_bytes is None
    assert a.with_more(b).forward_equivalents == a.forward_equivalents


def test_pages_know_the_version_that_is_written():
    assert circuit_page.VERSION == VERSION


@pytest.mark.parametrize("select", ["top:7", "threshold:0.05"])
def test_connections_can_be_asked_for_by_number_or_score(select):
    model = made_model(WORDS)
    circuit = find_edges(model, CLEAN, CORRUPT, ANSWERS, scorer="atp", select=select, draws=4, sizes=4)
    wiring = wiring_of(model)
    mean = circuit.scores[halves(len(CLEAN), 0, judged=JUDGED)[0]].mean(0)
    if select == "top:7":
        chosen = [k for k, _ in zip(greedy_order(mean, wiring), range(7), strict=False)]
    else:
        chosen = sorted(np.flatnonzero(np.abs(mean) >= 0.05).tolist(), key=lambda k: -abs(mean[k]))
    assert circuit.core == pruned(chosen, wiring) and circuit.core
    judge = halves(len(CLEAN), 0, judged=JUDGED)[1]
    f = Faithfulness(judge_edges(model, CLEAN.take(judge), CORRUPT.take(judge), ANSWERS), len(mean))
    assert circuit.faithfulness == pytest.approx(float(f.of([circuit.core])[0]), abs=1e-4)
    assert 0 < circuit.jaccard_chance < 1


@pytest.mark.slow
def test_the_smallest_faithful_circuit_is_found_between_the_sizes_of_the_grid():
    model = made_model(WORDS)
    coarse, fine = (
        find_edges(model, CLEAN, CORRUPT, ANSWERS, scorer="atp", threshold=0.5, draws=4, sizes=sizes)
        for sizes in (4, 999)
    )
    sizes = [n for n, _ in coarse.curve]
    at = sizes.index(len(coarse.core))
    assert len(sizes) > 5 and coarse.curve[at][1] >= 0.5 > coarse.curve[at - 1][1]
    curve = dict(fine.curve)
    assert max(n for n in curve if n < len(coarse.core)) == sizes[at - 1]  # none lies between the two
    for n, value in coarse.curve:
        assert curve[n] == pytest.approx(value, abs=1e-4)


def test_intervals_and_what_is_lost_with_each_connection():
    model = made_model(WORDS)
    circuit = find_edges(
        model, CLEAN, CORRUPT, ANSWERS, scorer="atp", threshold=0.5, draws=50, sizes=4, details=True
    )
    low, high = bootstrap_intervals(circuit.scores, draws=50)
    np.testing.assert_allclose(circuit.low, low, atol=1e-6)
    np.testing.assert_allclose(circuit.high, high, atol=1e-6)
    lost = np.asarray(circuit.minimality)
    tried = np.flatnonzero(np.isfinite(lost))
    assert len(lost) == len(circuit.core) and len(tried) == min(len(lost), edge_core.DROPPED)
    mean = np.abs(circuit.scores.mean(0)[list(circuit.core)])
    assert mean[tried].min() >= np.delete(mean, tried).max(initial=0)
    at, judge = int(tried[0]), halves(len(CLEAN), 0, judged=JUDGED)[1]
    f = Faithfulness(judge_edges(model, CLEAN.take(judge), CORRUPT.take(judge), ANSWERS), len(circuit.source))
    without = [k for k in circuit.core if k != circuit.core[at]]
    assert lost[at] == pytest.approx(circuit.faithfulness - float(f.of([without])[0]), abs=1e-4)
    whole = replace(found_circuit(), edges=circuit)
    file = to_file(whole, shape_of(wiring_of(model), model.config.hidden_size))
    assert file.edges[circuit.core[at]].dropped == pytest.approx(lost[at])
    assert file.edges[0].low <= file.edges[0].score <= file.edges[0].high
    assert file.edges_measured.jaccard_chance == circuit.jaccard_chance
    assert file.edges_knockouts == circuit.knockouts and circuit.knockouts["random"] >= 0


@pytest.mark.slow
def test_details_are_of_the_circuit_in_the_end_alone(monkeypatch):
    asked, whole = [], edge_core.knockouts

    def counting(f, core, **how):
        asked.append(len(core))
        return whole(f, core, **how)

    monkeypatch.setattr(edge_core, "knockouts", counting)
    monkeypatch.setattr(edge_core, "paired_overlap", lambda member: 0.1)
    how = {"scorer": "atp", "draws": 4, "sizes": 4, "threshold": 0.5}
    circuit = stable_edges(made_model(WORDS), CLEAN, CORRUPT, ANSWERS, start=4, details=True, **how)
    assert asked == [len(circuit.core)] == [len(circuit.minimality)] and len(circuit.notes) == 2
    if circuit.granularity == "head_mlp":
        alone = find_edges(made_model(WORDS), CLEAN, CORRUPT, ANSWERS, details=True, **how)
        np.testing.assert_allclose(circuit.minimality, alone.minimality, atol=1e-4)
