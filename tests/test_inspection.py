"""The examination of a recommender: imported circuits, overlaps that can fail, and pairs that are used."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from curerec import imported, inspection
from curerec.circuits import SCORERS
from curerec.circuits.adapter import adapter_scores, weight_deltas
from curerec.circuits.adapter_exact import exact_adapter
from curerec.circuits.eap_ig import from_eap_ig, to_eap_ig
from curerec.circuits.edge_patching import edge_patched_margins
from curerec.circuits.exchange import CircuitFile, Measures, read, write
from curerec.circuits.passes import Scores
from curerec.circuits.patching import patched_margins
from curerec.circuits.scorers import atp
from curerec.circuits.selection import JUDGED
from curerec.circuits.wiring import wiring_of
from curerec.config import parse
from curerec.errors import ConfigError, ModelError, PromptError
from curerec.imported import judge_imported
from curerec.inspect_config import InspectConfig
from curerec.inspection import inspect
from curerec.prompts.encoding import Encoder, queries
from curerec.recommender.storage import load_base
from curerec.recommender.units import units_of
from made_cases import soaked
from made_core import found_circuit
from made_recommender import opened, trained

SMALL = InspectConfig(
    pairs=12, pool=60, edges=6, edges_most=12, test=40, reading=8, variants=8, draws=20, batch_size=8
)
BARE = SMALL.model_copy(update={"edges": 0, "test": 0, "reading": 0, "variants": 0, "compact": False})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inspection")


@pytest.fixture(scope="module")
def made(folder):
    return opened(trained(folder))


@pytest.fixture(scope="module")
def file(made):
    return inspect(made, SMALL, groups={"layers.0.mlp": {"forget": 3}})


@pytest.fixture(scope="module")
def other(folder):
    """A recommender of the same shape and other weights."""
    return opened(trained(folder, seed=7))


def by_hand(made, sets, level):
    """f of each set kept, with every other part or connection patched, in the plain way."""
    model, answers = made.recommender.model, made.recommender.answers
    rng = np.random.default_rng([SMALL.seed, 97])
    pool = made.split.valid.take(np.sort(rng.permutation(len(made.split.valid))[-SMALL.pool :]))
    pairs = inspection.falling_pairs(made, pool, SMALL, SMALL.pairs, seed=SMALL.seed)
    wiring = wiring_of(model)
    if level == "parts":
        names = set(wiring.sources[1:])
        runs = patched_margins(
            model, pairs.clean, pairs.corrupt, answers, [set(), names, *(names - s for s in sets)]
        )
    else:
        masks = []
        for kept in sets:
            mask = wiring.mask.copy()
            for source, reader in kept:
                mask[wiring.sources.index(source), wiring.readers.index(reader)] = False
            masks.append(mask)
        few = pairs.take(np.arange(min(JUDGED, len(pairs.clean))))
        nothing = np.zeros_like(wiring.mask)
        runs = edge_patched_margins(model, few.clean, few.corrupt, answers, [nothing, wiring.mask, *masks])
    full, empty, *kept = runs.mean(1)
    return [(k - empty) / (full - empty) for k in kept]


@pytest.mark.slow_but("full-projection")
@pytest.mark.parametrize(
    ("kind", "granularity"), [soaked("full", "projection"), ("lora", "rank"), soaked("lora", "row")]
)
def test_what_fine_tuning_stored_is_what_the_adapter_scorer_says(folder, kind, granularity, tmp_path):
    made = opened(trained(folder, kind))
    config = BARE.model_copy(update={"units": granularity, "unit_prompts": 20, "select": "top:3"})
    found = inspect(made, config)
    model = made.recommender.model
    rng = np.random.default_rng([config.seed, 103])
    valid = made.split.valid.take(np.sort(rng.permutation(len(made.split.valid))[:20]))
    encoder = Encoder(
        made.recommender.tokenizer, made.recommender.template, made.data.titles["title"].to_pylist()
    )
    prompts = encoder.encode(queries(made.data, valid))
    units = units_of(model, granularity)
    base = load_base(made.base)[0].state_dict() if kind == "full" else {}
    deltas = weight_deltas(model, base, units)
    want = adapter_scores(model, prompts, encoder.answers, units, deltas, objective="margin")
    assert [u.name for u in found.units] == list(units.names)
    assert (found.units_granularity, found.units_prompts) == (granularity, 20)
    np.testing.assert_allclose([u.score for u in found.units], want.mean(0), atol=1e-6)
    assert np.abs(want.mean(0)).max() > 1e-4
    assert all(u.low <= u.score <= u.high for u in found.units)
    exact = exact_adapter(model, prompts, encoder.answers, units, deltas, most=30)
    assert {units.names[k] for k in exact.index} == {u.name for u in found.units if u.exact is not None}
    of = {u.name: u.exact for u in found.units}
    for k, value in zip(exact.index, exact.values.mean(0), strict=True):
        assert of[units.names[k]] == pytest.approx(value, abs=1e-5)
    write(found, tmp_path / "circuit.json")
    assert read(tmp_path / "circuit.json").units == found.units
    again = judge_imported(made, found, config)  # measured anew, not taken over
    assert [u.name for u in again.units] == [u.name for u in found.units]
    assert judge_imported(made, found, BARE).units == []


def test_rank_one_terms_of_a_recommender_without_an_adapter_are_refused_first(made, monkeypatch):
    monkeypatch.setattr(inspection, "falling", None)  # nothing is run before
    with pytest.raises(ModelError, match="no rank-one terms"):
        inspect(made, BARE.model_copy(update={"units": "rank"}))


def test_an_imported_circuit_holds_what_was_measured_here_alone(file, other, tmp_path):
    """Nothing that was measured of the recommender that it was found in stands under the other's name."""
    write(file, tmp_path / "circuit.json")
    judged = judge_imported(other, read(tmp_path / "circuit.json"), SMALL)
    parts = {n.name for n in file.nodes if n.in_graph}
    joined = {(e.source, e.reader) for e in file.edges if e.in_graph}
    everything = {n.name for n in file.nodes}
    kept, without = by_hand(other, [parts, everything - parts], "parts")
    assert judged.nodes_measured.faithfulness == pytest.approx(kept, abs=1e-4)
    assert judged.nodes_measured.completeness == pytest.approx(1 - without, abs=1e-4)
    rest = {(e.source, e.reader) for e in file.edges} - joined
    kept, without = by_hand(other, [joined, rest], "connections")
    assert judged.edges_measured.faithfulness == pytest.approx(kept, abs=1e-4)
    assert judged.edges_measured.completeness == pytest.approx(1 - without, abs=1e-4)
    assert judged.nodes_measured.faithfulness != pytest.approx(file.nodes_measured.faithfulness, abs=1e-3)
    blank = CircuitFile(shape=file.shape, scorer=file.scorer, nodes=[])
    fields = ("matters", "edges_matter", "knockouts", "edges_knockouts", "overlaps", "compact", "necessary")
    for name in (*fields, "agreement", "cost", "edges_pairs"):
        assert getattr(judged, name) == getattr(blank, name) != getattr(file, name), name
    for measured in (judged.nodes_measured, judged.edges_measured):
        bare = measured.model_copy(update={"faithfulness": None, "completeness": None})
        assert bare == Measures()
    for node, old in zip(judged.nodes, file.nodes, strict=True):
        assert (node.name, node.in_graph, node.rank, node.score) == (
            old.name,
            old.in_graph,
            old.rank,
            old.score,
        )
        assert node.low is node.exact is node.reads is node.dropped is None and node.groups == {}
    assert all(e.low is None and e.dropped is None for e in judged.edges)
    assert judged.about["weights_sha256"] == other.recommender.card["weights_sha256"]
    assert judged.pairs["kept"] <= 12 and "imported" in judged.notes[0]


def test_a_circuit_that_comes_back_is_judged_on_prompts_that_did_not_choose_it(file, made, monkeypatch):
    pools, plain = [], inspection.falling_pairs
    for module in (inspection, imported):
        monkeypatch.setattr(module, "falling_pairs", lambda *a, **k: pools.append(a[1]) or plain(*a, **k))
    few = BARE.model_copy(update={"pool": len(made.split.valid) // 2})
    inspect(made, few)
    judge_imported(made, file, few)
    chose, judged = (set(pool.target.tolist()) for pool in pools)
    assert len(chose) == len(judged) == few.pool and not chose & judged


def test_a_circuit_of_parts_is_worth_as_much_in_the_other_form(file, made):
    """Exported without connections and read again, all that leave its parts are in it: the same run."""
    alone = file.model_copy(update={"edges": [], "edges_measured": None, "edges_scorer": None})
    raw = json.loads(json.dumps(to_eap_ig(alone)))
    back = from_eap_ig(raw, n_kv_heads=file.shape.n_kv_heads)
    judged = judge_imported(made, back, SMALL)
    assert judged.edges_measured.faithfulness == pytest.approx(judged.nodes_measured.faithfulness, abs=1e-3)


def test_what_is_said_of_pairs_and_cost(file):
    assert file.pairs["asked"] == 54 and file.pairs["made"] > file.pairs["fell"] >= file.pairs["kept"]
    assert file.pairs["moved"] > file.pairs["judged"]  # of all that were made
    assert file.cost["edges_forward_equivalents"] == 12 and file.cost["time_s"] > 0
    assert file.edges_scorer == "atp_ig" and file.about["select"] == "faithful"
    inside = [n for n in file.nodes if n.in_graph]
    assert all(n.dropped is not None for n in inside) and len(inside) == len(file.nodes_measured.minimality)
    assert all(e.low <= e.score <= e.high for e in file.edges)
    lost = [e.dropped for e in file.edges if e.dropped is not None]
    assert 0 < len(lost) <= 24 and all(e.in_graph for e in file.edges if e.dropped is not None)
    assert file.edges_knockouts.keys() == file.knockouts.keys()


class ReachedError(Exception):
    """What follows was not to be run."""


@pytest.mark.parametrize("why", ["one prompt", "one label"])
def test_test_prompts_of_which_nothing_can_be_said_are_told_first_and_noted(made, why, monkeypatch):
    """A request for five of them failed after everything that takes long, or was dropped without a word."""
    order = []

    def few(opened, examples, *args, **how):
        order.append("test pairs")
        pairs = made_pairs(opened, examples, *args, **how)
        return pairs.take(np.flatnonzero(pairs.clean.label == 1)) if why == "one label" else pairs

    def pairs_of(*args, **how):
        order.append("pairs")
        return plain(*args, **how)

    made_pairs, plain = inspection.aligned, inspection.falling_pairs
    monkeypatch.setattr(inspection, "aligned", few)
    monkeypatch.setattr(inspection, "falling_pairs", pairs_of)
    monkeypatch.setattr(inspection, "stable_core", lambda *a, **k: found_circuit((0,)))
    found = inspect(made, BARE.model_copy(update={"test": 1 if why == "one prompt" else 40, "pool": 24}))
    assert order == ["test pairs", "pairs"] and found.matters == {} and found.necessary == []
    said = {"one prompt": "no two prompts have the same number", "one label": "all have the same label"}[why]
    (note,) = [n for n in found.notes if "knock-out" in n]
    assert said in note and "--test" in note


@pytest.mark.parametrize(
    ("pairs", "edges", "most", "corruption", "want"),
    [(12, 4, 6, "prompt", 6), (4, 4, 9, "prompt", 9), (12, 9, 5, "prompt", 9), (12, 4, 6, "history", 6)],
)
def test_connections_have_at_most_as_many_pairs_as_were_asked_for(
    made, pairs, edges, most, corruption, want, monkeypatch
):
    """All the pairs of the parts had been theirs as well, however few the maximum."""
    asked = []

    def stop(model, clean, corrupt, answers, *, start, **how):
        asked.append((len(clean), start))
        raise ReachedError

    monkeypatch.setattr(inspection, "stable_core", lambda *a, **k: None)
    monkeypatch.setattr(inspection, "stable_edges", stop)
    update = {"pairs": pairs, "edges": edges, "edges_most": most, "corruption": corruption}
    with pytest.raises(ReachedError):
        inspect(made, BARE.model_copy(update=update))
    assert asked == [(want, edges)]


def test_one_pair_is_too_few_for_the_overlaps():
    for pairs in (0, 2):
        assert InspectConfig(variants=pairs).variants == pairs
    with pytest.raises(ConfigError, match=r"variants.*at least 2"):
        parse(InspectConfig, {"variants": 1}, where="circuit")


@pytest.mark.parametrize("only", [True, False])
def test_a_variant_that_gives_no_circuit_is_noted_and_no_overlap_made_up(made, only, monkeypatch):
    """The circuit that the others are compared with may be one; alone a circuit overlaps with nothing."""

    def find(model, clean, corrupt, answers, *, scorer, seed, trust, **how):
        fails = (seed, trust) == (0, True) or (only and seed != 1)
        if fails:
            raise PromptError("nothing falls", where="circuit", mend="Use others")
        return found_circuit((0, 1))

    monkeypatch.setattr(inspection, "find_core", find)
    monkeypatch.setattr(inspection, "stable_core", lambda *a, **k: found_circuit((0,)))
    found = inspect(made, BARE.model_copy(update={"variants": 4, "pool": 24}))
    tables = {t.over: t for t in found.overlaps}
    assert tables["seeds"].names == (["1"] if only else ["1", "2", "3"])
    assert tables["seeds"].mean == (None if only else 1.0)
    assert tables["templates"].names == [] and tables["templates"].mean is None
    own = made.recommender.template
    for name in ("overlap over seeds: 0", f"overlap over templates: {own}"):
        assert f"{name} gave no circuit (nothing falls)" in found.notes
    assert ("overlap over scorers: atp gave no circuit (nothing falls)" in found.notes) is only
    assert tables["scorers"].names == ([] if only else ["atp_ig", "exact", "atp", "relp"])
    assert '"mean":null' in found.model_dump_json()


@pytest.mark.slow
def test_connections_have_as_many_resamples_as_were_asked_for(made, monkeypatch):
    asked = {}

    def stop(*pairs, **how):
        asked.update(how)
        raise InterruptedError

    monkeypatch.setattr(inspection, "stable_edges", stop)
    for scorer, other in (("relp", "relp"), ("exact", "atp_ig")):
        config = BARE.model_copy(update={"edges": 6, "draws": 33, "scorer": scorer, "select_edges": "top:5"})
        with pytest.raises(InterruptedError):
            inspect(made, config)
        assert (asked["draws"], asked["scorer"], asked["select"]) == (33, other, "top:5")


@pytest.mark.slow
@pytest.mark.soak
def test_parts_are_looked_for_with_more_pairs_where_resamples_overturn_them(made, monkeypatch):
    """Sixty-four to begin with, and the others where those are not enough."""
    from curerec.circuits import core as core_module

    monkeypatch.setattr(core_module, "bootstrap_jaccard", lambda *a, **k: 0.25)
    made_pairs = inspection.falling_pairs

    def many(opened, pool, config, n, **how):
        pairs = made_pairs(opened, pool, config, n, **how)
        return pairs.take(np.arange(n) % len(pairs.clean))

    monkeypatch.setattr(inspection, "falling_pairs", many)
    found = inspect(made, BARE.model_copy(update={"pairs": 80}))
    assert any("with 64 pairs: went on with 80" in note for note in found.notes)


@pytest.mark.slow
def test_a_scorer_of_noise_does_not_agree_with_the_others(made, monkeypatch):
    """With few modules the exact ranking would stand in for each of them, and all would agree."""

    def noise(*args, **kwargs):
        found = atp.score(*args, **{k: v for k, v in kwargs.items() if k == "batch_size"})
        values = np.random.default_rng(5).normal(size=found.values.shape).astype(np.float32)
        return Scores(found.names, values, None, "noise", found.cost)

    for name in list(SCORERS):
        if name not in ("atp_ig", "exact"):
            monkeypatch.delitem(SCORERS, name)
    monkeypatch.setitem(SCORERS, "noise", noise)
    config = SMALL.model_copy(update={"faithfulness": 0.5})
    rng = np.random.default_rng([config.seed, 97])
    pool = made.split.valid.take(np.sort(rng.permutation(len(made.split.valid))[: config.pool]))
    tables, _ = inspection._variants(made, config, pool, "head_mlp")
    table = next(t for t in tables if t.over == "scorers")
    assert table.names == ["atp_ig", "exact", "noise"]
    matrix = np.asarray(table.matrix)
    assert matrix[0, 1] > matrix[2, :2].max() and table.mean < 0.9


@pytest.mark.slow
def test_what_heads_read_does_not_depend_on_what_else_is_measured(made):
    """The prompts whose attention is read had been drawn after those of the test, if there were any."""
    found = [inspect(made, BARE.model_copy(update={"reading": 8, "test": test})).nodes for test in (0, 10)]
    reads = [[node.reads for node in nodes] for nodes in found]
    assert any(reads[0]) and reads[0] == reads[1]


def test_a_circuit_of_so_many_parts(made):
    found = inspect(made, BARE.model_copy(update={"select": "top:3"}))
    assert sorted(n.rank for n in found.nodes if n.in_graph) == [0, 1, 2]
    assert found.about["faithfulness_asked"] is None and found.about["select"] == "top:3"
    with pytest.raises(ConfigError, match="top:K"):
        inspect(made, BARE.model_copy(update={"select_edges": "best"}))


@pytest.mark.slow
@pytest.mark.soak
def test_memory_that_ran_out_while_sets_were_judged_is_noted(made, monkeypatch):
    config = BARE.model_copy(update={"compact": True, "test": 40, "batch_size": 8})
    full = inspection.judge_modules

    def cramped(model, clean, *rest, cost=None, **more):
        judge = full(model, clean, *rest, cost=cost, **more)

        def judged(sets):
            layer = model.model.layers[1]
            handle = layer.register_forward_pre_hook(too_many)
            try:
                return judge(sets)
            finally:
                handle.remove()

        return judged

    def too_many(module, args):
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("planted")

    plain = inspect(made, config)
    assert not any("memory ran out" in note for note in plain.notes)
    monkeypatch.setattr(inspection, "judge_modules", cramped)
    noted = inspect(made, config)
    assert any("memory ran out" in note and "while sets were judged" in note for note in noted.notes)
    assert [s.members for s in noted.necessary] == [s.members for s in plain.necessary]
