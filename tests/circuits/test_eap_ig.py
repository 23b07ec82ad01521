"""The form of EAP-IG and MIB: read by the reference's own rules, and refused where no model is like it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from curerec.circuits.eap_ig import from_eap_ig, to_eap_ig
from curerec.circuits.exchange import CircuitFile, read
from curerec.circuits.graph import edges_of, sources_of
from curerec.circuits.wiring import wiring_of
from curerec.errors import ModelError
from made_families import TYPES, made_family_model

CFG = {"n_layers": 1, "n_heads": 2, "d_model": 8, "parallel_attn_mlp": False}


def read_by_the_reference(raw):
    """Nodes and edges of the circuit as EAP-IG's ``Graph.from_json`` and ``prune`` have them, done plainly.

    A node stays that an edge of the circuit leaves and one enters (the prompt needs none); an edge stays
    whose two ends do; until nothing changes. Scores must be numbers.
    """
    layers, heads = raw["cfg"]["n_layers"], raw["cfg"]["n_heads"]
    known = {"input", "logits", *(f"m{k}" for k in range(layers))}
    known |= {f"a{k}.h{h}" for k in range(layers) for h in range(heads)}
    assert set(raw["nodes"]) <= known
    nodes = {name for name, v in raw["nodes"].items() if v["in_graph"]} | {"logits"}
    edges = set()
    for name, value in raw["edges"].items():
        assert isinstance(float(value["score"]), float)
        if value["in_graph"]:
            edges.add(tuple(name.split("->")))
    while True:
        leaving, entering = {s for s, _ in edges}, {t.split("<")[0] for _, t in edges} | {"input"}
        alive = (leaving & entering) | {"logits"}
        kept = {(s, t) for s, t in edges if s in alive and t.split("<")[0] in alive}
        if (alive, kept) == (nodes, edges):
            return nodes, edges
        nodes, edges = alive, kept


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_circuit_of_parts_alone_is_read_as_that_circuit(kv, parallel):
    """The reference's circuit is its edges; its selection by nodes takes all that leave the nodes chosen."""
    inside = {"layers.0.head.1", "layers.1.mlp"}
    shape = {"n_layers": 2, "n_heads": 4, "n_kv_heads": kv, "d_model": 8, "parallel_attn_mlp": parallel}
    names = [f"layers.{k}.{p}" for k in range(2) for p in (*(f"head.{h}" for h in range(4)), "mlp")]
    nodes = [{"name": n, "score": -1.0, "in_graph": n in inside} for n in names]
    raw = to_eap_ig(CircuitFile(shape=shape, scorer="exact", nodes=nodes))
    found, edges = read_by_the_reference(json.loads(json.dumps(raw)))
    assert found == {"input", "a0.h1", "m1", "logits"}
    before = [("input", 0), ("a0.h1", 0), ("m1", 1)]
    later = {"a1.h2<q>": 1, "a0.h0<v>": 0, "logits": 2}
    for source, layer in before:
        assert raw["edges"][f"{source}->logits"]["in_graph"]
        for target, of in later.items():
            there = source == "input" or of > layer
            assert (f"{source}->{target}" in raw["edges"]) == there
            assert not there or raw["edges"][f"{source}->{target}"]["in_graph"]
    assert ("a0.h1->m0" in raw["edges"]) != parallel
    # What pruning leaves are the edges between what is in the circuit.
    assert ("a0.h1", "m1") in edges and ("input", "a0.h1<k>") in edges and ("m1", "logits") in edges
    assert all(s in found and t.split("<")[0] in found for s, t in edges)
    none = to_eap_ig(CircuitFile(shape=shape, scorer="exact", nodes=[{"name": n} for n in names]))
    assert read_by_the_reference(none)[0] == {"input", "logits"}  # the prompt alone is never patched


@pytest.mark.parametrize("model_type", TYPES)
def test_the_graph_of_a_shape_is_that_of_the_model(model_type):
    from curerec.circuits.exchange import shape_of

    model = made_family_model(model_type, 40)
    wiring = wiring_of(model)
    shape = shape_of(wiring, model.config.hidden_size)
    assert tuple(sources_of(shape)) == wiring.sources
    want = [(wiring.sources[s], wiring.readers[r]) for s, r in zip(*np.nonzero(wiring.mask), strict=True)]
    assert edges_of(shape) == want


def foreign(nodes=("a0.h0", "a0.h1", "m0"), edges=("input->m0",), **cfg):
    return {
        "cfg": CFG | cfg,
        "nodes": {n: {"in_graph": True} for n in nodes},
        "edges": {e: {"score": 0.5, "in_graph": True} for e in edges},
    }


@pytest.mark.parametrize(
    ("raw", "kv", "match"),
    [
        (foreign(), 4, "2 heads a layer, which 4 key/value heads cannot share"),
        (foreign(n_heads=3), 2, "3 heads a layer"),
        (foreign(nodes=["a9.h9"]), None, r"layers\.9\.head\.9.*1 layers with 2 heads"),
        (foreign(nodes=["m1"]), None, r"layers\.1\.mlp"),
        (foreign(edges=["logits->m0"]), None, "logits.*mlp"),
        (foreign(edges=["input->a0.h2<q>"]), None, r"head\.2\.q"),
        (foreign(edges=["m0->a0.h0<q>"]), None, r"layers\.0\.mlp.*cannot have"),
        (foreign(edges=["m1->a0.h0<q>"], n_layers=2), None, r"layers\.1\.mlp.*cannot have"),
        (foreign(edges=["a0.h0->a0.h1<v>"]), None, "cannot have"),
        (foreign(edges=["a0.h0->m0"], parallel_attn_mlp=True), None, "cannot have"),
    ],
)
def test_what_no_model_can_be_is_refused(raw, kv, match, tmp_path):
    with pytest.raises(ModelError, match=match) as caught:
        from_eap_ig(raw, n_kv_heads=kv)
    assert caught.value.where and caught.value.mend


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"nodes": [{"name": "layers.9.mlp"}]}, r"layers\.9\.mlp"),
        ({"nodes": [{"name": "layers.0.mlp"}] * 2}, "twice"),
        ({"nodes": [{"name": "input"}]}, "input"),
        ({"edges": [{"source": "layers.0.mlp", "reader": "layers.0.head.0.q"}]}, "cannot have"),
        ({"edges": [{"source": "input", "reader": "logits"}] * 2}, "twice"),
        ({"shape": {"n_layers": 1, "n_heads": 2, "n_kv_heads": 4, "d_model": 4}}, "2 heads a layer"),
    ],
)
def test_nor_in_the_own_form(change, match, tmp_path):
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 4}
    whole = CircuitFile(shape=shape, scorer="atp", nodes=[]).model_dump(mode="json")
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(whole))
    assert read(path).nodes == []
    path.write_text(json.dumps(whole | change))
    with pytest.raises(ModelError, match=match):
        read(path)
