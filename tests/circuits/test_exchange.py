"""Circuits as files: whole there and back, in both forms, and refused where they are damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest

from curerec.circuits.core import find_core
from curerec.circuits.eap_ig import from_eap_ig, read_eap_ig, to_eap_ig
from curerec.circuits.edge_core import find_edges
from curerec.circuits.exchange import (
    CircuitFile,
    read,
    shape_of,
    to_file,
    write,
)
from curerec.circuits.wiring import wiring_of
from curerec.errors import ModelError
from made_families import made_family_model
from made_models import falling, made_prompts, other_titles

CLEAN, ENCODER = made_prompts(6)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)


@pytest.fixture(scope="module", params=["gpt2", "llama", "phi"])
def file(request):
    from dataclasses import replace

    model = made_family_model(request.param, WORDS)
    pair = falling(model, CLEAN, CORRUPT, ANSWERS)
    circuit = find_core(model, *pair, ANSWERS, draws=4, details=True)
    edges = find_edges(model, *pair, ANSWERS, scorer="atp", draws=4, sizes=6, details=True)
    return to_file(replace(circuit, edges=edges), shape_of(wiring_of(model), model.config.hidden_size))


def test_there_and_back(file, tmp_path):
    write(file, tmp_path / "circuit.json")
    assert read(tmp_path / "circuit.json") == file
    raw = json.loads((tmp_path / "circuit.json").read_text())
    assert raw["format"] == "curerec-circuit" and raw["version"] == 5
    assert "NaN" not in (tmp_path / "circuit.json").read_text()
    assert sum(n["in_graph"] for n in raw["nodes"]) > 0


def test_the_form_of_eap_ig(file, tmp_path):
    out = to_eap_ig(file)
    layers, heads = file.shape.n_layers, file.shape.n_heads
    assert set(out["cfg"]) == {"n_layers", "n_heads", "d_model", "parallel_attn_mlp"}
    assert set(out["nodes"]) == {"input", "logits", *(f"m{k}" for k in range(layers))} | {
        f"a{k}.h{h}" for k in range(layers) for h in range(heads)
    }
    # The number of edges is that of the reference: q, k and v of every head see all before them.
    before = 1 + np.arange(layers) * (heads + 1)
    into_mlp = before if file.shape.parallel_attn_mlp else before + heads
    assert len(out["edges"]) == int((3 * heads * before + into_mlp).sum()) + 1 + layers * (heads + 1)
    for name in ("input->a0.h0<q>", "input->m0", "a0.h1->a1.h0<k>", "m0->logits"):
        assert set(out["edges"][name]) == {"score", "in_graph"}
    assert ("a0.h1->m0" in out["edges"]) != file.shape.parallel_attn_mlp
    path = tmp_path / "eap.json"
    path.write_text(json.dumps(out))
    back = read_eap_ig(path, n_kv_heads=file.shape.n_kv_heads)
    assert back.shape == file.shape
    ours = {(e.source, e.reader): e for e in file.edges}
    theirs = {(e.source, e.reader): e for e in back.edges}
    assert set(ours) == set(theirs)
    for key, edge in ours.items():
        assert theirs[key].in_graph == edge.in_graph
        assert theirs[key].score == pytest.approx(edge.score, rel=1e-9, abs=1e-15)
    assert [(n.name, n.score, n.in_graph) for n in back.nodes] == [
        (n.name, n.score, n.in_graph) for n in file.nodes
    ]
    assert to_eap_ig(back)["edges"].keys() == out["edges"].keys()


def test_a_file_as_the_reference_writes_it():
    raw = {
        "cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8, "extra": "kept out"},
        "nodes": {"input": {"in_graph": True}, "a0.h0": True, "a0.h1": {"in_graph": False, "score": -0.5},
                  "m0": {"in_graph": True}, "logits": {"in_graph": True}},
        "edges": {"input->a0.h0<v>": {"score": 0.25, "in_graph": True},
                  "a0.h0->m0": {"score": 1, "in_graph": True},
                  "a0.h1->logits": {"score": -2, "in_graph": False}},
    }  # fmt: skip
    file = from_eap_ig(raw)
    assert [(n.name, n.score, n.in_graph) for n in file.nodes] == [
        ("layers.0.head.0", None, True), ("layers.0.head.1", -0.5, False), ("layers.0.mlp", None, True)
    ]  # fmt: skip
    assert [(e.source, e.reader, e.score, e.in_graph) for e in file.edges] == [
        ("input", "layers.0.kv.0.v", 0.25, True),
        ("layers.0.head.0", "layers.0.mlp", 1.0, True),
        ("layers.0.head.1", "logits", -2.0, False),
    ]


@pytest.mark.parametrize("of", ["first", "second"])
def test_a_sum_of_a_score_that_is_not_known_is_not_known(of):
    """Whichever head of a group it is missing of: it had been the other's score if that came second."""
    edges = {"input->a0.h0<k>": {"score": 0.25, "in_graph": True},
             "input->a0.h1<k>": {"score": 0.5, "in_graph": False}}  # fmt: skip
    edges[f"input->a0.h{('first', 'second').index(of)}<k>"]["score"] = None
    cfg = {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    (edge,) = from_eap_ig({"cfg": cfg, "nodes": {}, "edges": edges}, n_kv_heads=1).edges
    assert (edge.reader, edge.score, edge.in_graph) == ("layers.0.kv.0.k", None, True)


@pytest.mark.parametrize("damage", ["no cfg", "bad edge", "not a graph"])
def test_a_foreign_file_that_is_none_is_refused(damage, tmp_path):
    raw = {
        "no cfg": {"nodes": {}, "edges": {}},
        "bad edge": {"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 4}, "nodes": {}, "edges": {"a->b": {}}},
        "not a graph": [1, 2],
    }[damage]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"circuit"):
        read_eap_ig(path)


@pytest.mark.parametrize("wrong", ["high", "0.1", "nan", [1], {}, True])
@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda v: {"nodes": [{"name": "layers.0.mlp", "score": v}]}, r"nodes\.0\.score"),
        (lambda v: {"matters": {"auc": v}}, r"matters\.auc"),
        (lambda v: {"nodes_measured": {"curve": [[0, v]]}}, r"nodes_measured\.curve\.0\.1"),
    ],
)
def test_what_is_no_number_is_refused_with_its_field(wrong, change, field, tmp_path):
    whole = CircuitFile(
        shape={"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 4}, scorer="atp", nodes=[]
    ).model_dump(mode="json")
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(whole | change(wrong)))
    with pytest.raises(ModelError, match=f"the field {field} cannot be read"):
        read(path)
    path.write_text(json.dumps(whole | change(float("nan"))))  # as other tools write what they do not know
    assert "NaN" in path.read_text() and read(path) == CircuitFile.model_validate(whole | change(None))
    foreign = {"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 4}, "nodes": {"m0": {"in_graph": True}},
               "edges": {"input->m0": {"score": wrong, "in_graph": True}}}  # fmt: skip
    with pytest.raises(ModelError, match="EAP-IG"):
        from_eap_ig(foreign)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 6}, "version 1 to 5"),
        ({"shape": {"n_layers": 0}}, "shape"),
        ({"surprise": 1}, "surprise"),
        ({"nodes": [{"name": 3}]}, "nodes.0.name"),
    ],
)
def test_a_damaged_file_is_refused_with_its_field(change, match, tmp_path):
    whole = CircuitFile(
        shape={"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 4}, scorer="atp", nodes=[]
    ).model_dump(mode="json")
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(whole | change))
    with pytest.raises(ModelError, match=match):
        read(path)
    for version in (1, 2, 3, 4):  # of the versions before
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != "compact"} | {"version": version}))
        assert read(path).nodes == []
    path.write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        read(path)
