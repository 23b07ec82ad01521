"""``curerec circuit``: what it leaves behind, that other tools' files go in and out, and what it refuses."""

from __future__ import annotations

import json
import re

import pytest

from curerec.circuits.eap_ig import read_eap_ig
from curerec.circuits.exchange import read
from made_commands import PRIVATE, curerec, refused

SMALL = ("--pairs", 12, "--edges", 6, "--test", 40, "--reading", 8, "--variants", 8)


@pytest.fixture(scope="module")
def out(made_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("circuit") / "full"
    result = curerec(
        "circuit", "--recommender", made_path.full, "--data", made_path.data, "--out", folder,
        "--record", made_path.new / "record.json", "--scorer", "atp_ig", *SMALL,
    )  # fmt: skip
    assert result.code == 0, result
    folder.joinpath("printed").write_text(result.out)
    return folder


def test_it_leaves_a_file_in_both_forms_and_a_page(out):
    file = read(out / "circuit.json")
    assert file.version == 5 and file.shape.n_layers == 2 and len(file.nodes) == 10
    assert sorted(n.rank for n in file.nodes) == list(range(10))
    core = [n for n in file.nodes if n.in_graph]
    assert sorted(n.rank for n in core) == list(range(len(core)))
    assert all(n.reads is not None for n in file.nodes if ".head." in n.name)
    assert any(sum(n.groups.values()) for n in file.nodes)
    assert (
        file.matters.keys() == file.edges_matter.keys() >= {"auc", "auc_floor", "auc_without", "auc_random"}
    )
    assert [n.level for n in file.necessary] == ["parts", "connections"]
    assert 0 < len(file.compact.members) <= file.compact.total == 10
    assert file.compact.matters.keys() == file.matters.keys()
    assert {o.over for o in file.overlaps} == {"seeds", "templates", "scorers"}
    assert file.cost["forward_equivalents"] == file.cost["edges_forward_equivalents"] == 12
    assert file.cost["process_peak_bytes"] > 0
    assert file.corruption == "prompt" and file.edges and file.edges_measured.faithfulness is not None
    theirs = read_eap_ig(out / "circuit.eap-ig.json", n_kv_heads=file.shape.n_kv_heads)
    assert [(n.name, n.in_graph) for n in theirs.nodes] == [(n.name, n.in_graph) for n in file.nodes]
    for name in ("circuit.json", "circuit.html"):
        assert not PRIVATE.search((out / name).read_text())


def test_it_prints_the_cost_and_what_was_found(out):
    printed = out.joinpath("printed").read_text()
    assert "12 forward-equivalents an example to score the parts, 12 the connections, " in printed
    assert "s for all of it, judging included" in printed and "MiB" in printed
    assert re.search(r"overlap over resamples \d\.\d\d \(by chance \d\.\d\d\)", printed)
    assert "exact patching of 10 parts: Spearman" in printed
    pairs = read(out / "circuit.json").pairs
    assert (
        f"pairs: {pairs['asked']} asked for, {pairs['unaligned']} without a twin of the same length, "
        f"{pairs['made']} made; of these {pairs['moved']} moved the margin by more than .001, "
        f"{pairs['fell']} lowered it, {pairs['flipped']} turned the answer round; {pairs['kept']} used, "
        f"{pairs['judged']} of them to judge"
    ) in printed
    assert (
        "fewest parts: " in printed and "without the circuit" in printed and "overlap over scorers" in printed
    )
    assert not PRIVATE.search(printed)


def test_an_imported_circuit_is_drawn_and_judged(out, made_path, tmp_path):
    drawn = curerec("circuit", "--import", out / "circuit.eap-ig.json", "--out", tmp_path / "drawn")
    assert drawn.code == 0, drawn
    assert "was not measured here" in (tmp_path / "drawn" / "circuit.html").read_text()
    judged = curerec(
        "circuit", "--import", out / "circuit.json", "--recommender", made_path.full,
        "--data", made_path.data, "--out", tmp_path / "judged", "--pairs", 12,
    )  # fmt: skip
    assert judged.code == 0, judged
    file = read(tmp_path / "judged" / "circuit.json")
    assert file.nodes_measured.faithfulness is not None and file.about["base"]
    assert file.edges_measured.faithfulness is not None and file.edges_measured.jaccard is None
    assert file.matters == {} and file.necessary == [] and "test AUC" not in judged.out
    assert "connections: " in judged.out and "None" not in judged.out
    assert "was measured on this recommender" in (tmp_path / "judged" / "circuit.html").read_text()


def test_an_import_that_holds_little_is_drawn_and_said(tmp_path):
    """Whatever the schema leaves out is left out of what is printed, and of the page."""
    bare = {
        "format": "curerec-circuit",
        "version": 5,
        "shape": {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 4},
        "scorer": "imported",
        "nodes": [{"name": "layers.0.head.0", "in_graph": True,
                   "reads": {"part": "elsewhere"}}, {"name": "layers.0.mlp"}],
        "edges": [{"source": "input", "reader": "layers.0.head.0.q", "in_graph": True}],
        "edges_measured": {"faithfulness": None, "jaccard": None},
        "overlaps": [{"over": "seeds", "names": ["0"], "matrix": [[None]]}],
        "compact": {"members": ["layers.0.mlp"], "total": 2},
        "necessary": [{"level": "parts", "members": ["layers.0.mlp"], "total": 2},
                      {"level": "connections", "members": ["input->logits"], "total": 4,
                       "matters": {"auc_without": None}}],
        "matters": {"auc": 0.7, "auc_floor": None},
        "edges_matter": {"lost": 0.5},
        "agreement": {"spearman": None},
        "pairs": {"kept": 3},
    }  # fmt: skip
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    result = curerec("circuit", "--import", tmp_path / "bare.json", "--out", tmp_path / "drawn")
    assert result.code == 0, result
    said = result.out
    assert "connections: 1 of 1\n" in said and "overlap over seeds: not measured (0)" in said
    assert "without the 1 parts it cannot do without it loses not measured of the margin" in said
    assert "test AUC 0.700; without the circuit not measured" in said and "None" not in said
    assert (tmp_path / "drawn" / "circuit.html").exists()


def test_an_overlap_and_a_fall_that_were_not_measured_are_called_so(tmp_path):
    bare = {
        "format": "curerec-circuit",
        "version": 5,
        "shape": {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 4},
        "scorer": "imported",
        "nodes": [{"name": "layers.0.mlp", "score": -0.5}],
        "overlaps": [{"over": "templates", "names": ["likes"], "matrix": [[1.0]], "mean": None}],
        "matters": {"auc": 0.657, "auc_floor": 0.672, "auc_without": 0.67, "auc_random": 0.662, "lost": None},
        "notes": ["overlap over templates: chat gave no circuit (nothing falls)"],
    }
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    result = curerec("circuit", "--import", tmp_path / "bare.json", "--out", tmp_path / "drawn")
    assert result.code == 0 and "overlap over templates: not measured (likes)" in result.out, result
    assert "note: overlap over templates: chat gave no circuit" in result.out
    assert (
        "Everything patched does not measurably lower the AUC (0.672; nothing patched: 0.657)" in result.out
    )
    wrong = bare | {"nodes": [{"name": "layers.0.mlp", "score": "high"}]}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    to = ("--out", tmp_path / "x")
    refused(curerec("circuit", "--import", tmp_path / "wrong.json", *to), "wrong.json", "nodes.0.score")
    assert not (tmp_path / "x").exists()


def test_impossible_imports_are_refused(tmp_path, out, made_path):
    raw = json.loads((out / "circuit.eap-ig.json").read_text())
    to = ("--out", tmp_path / "x")
    (tmp_path / "a.json").write_text(
        json.dumps(raw | {"edges": {"logits->m0": {"score": 1, "in_graph": True}}})
    )
    refused(curerec("circuit", "--import", tmp_path / "a.json", *to), "logits", "cannot have")
    few = raw | {"cfg": raw["cfg"] | {"n_heads": 1}, "nodes": {}, "edges": {}}
    (tmp_path / "b.json").write_text(json.dumps(few))
    model = ("--recommender", made_path.full, "--data", made_path.data)
    refused(curerec("circuit", *model, "--import", tmp_path / "b.json", *to), "key/value heads")
    assert not (tmp_path / "x").exists()


def test_a_circuit_of_a_size_asked_for(made_path, tmp_path):
    result = curerec(
        "circuit", "--recommender", made_path.full, "--data", made_path.data, "--out", tmp_path / "top",
        "--select", "top:3", "--select-edges", "threshold:0.01", "--pairs", 8, "--edges", 6, "--test", 0,
        "--reading", 0, "--variants", 0,
    )  # fmt: skip
    assert result.code == 0 and "circuit: 3 of 10 parts" in result.out, result
    file = read(tmp_path / "top" / "circuit.json")
    assert file.about["select"] == "top:3" and file.about["select_connections"] == "threshold:0.01"
    help_text = " ".join(curerec("circuit", "--help").out.split())
    assert "top:K" in help_text and "Connections: the same where" in help_text


@pytest.mark.slow
@pytest.mark.soak
def test_history_counterfactuals_and_lora(made_path, tmp_path):
    result = curerec(
        "circuit", "--recommender", made_path.lora, "--data", made_path.data, "--out", tmp_path / "lora",
        "--corruption", "history", "--start", "user", "--units", "rank", "--pairs", 8, "--edges", 0,
        "--test", 0, "--reading", 0, "--variants", 0,
    )  # fmt: skip
    assert result.code == 0, result
    raw = json.loads((tmp_path / "lora" / "circuit.json").read_text())
    assert len(raw["units"]) == 2 * 7 * 4 and raw["units_granularity"] == "rank" and raw["version"] == 5
    (said,) = re.findall(r"fine-tuning stored most in \(of \d+ units\): (.*)", result.out)
    largest = sorted(raw["units"], key=lambda u: -abs(u["score"]))[:3]
    assert re.findall(r"layers\.\S+", said) == [u["name"] for u in largest]
    page = (tmp_path / "lora" / "circuit.html").read_text()
    assert "What fine-tuning stored where" in page and ", rank " in page
    assert raw["about"]["pagerank_from"] == "user"
    assert raw["corruption"] == "history" and raw["edges"] == [] and raw["matters"] == {}


def test_what_cannot_be_done_is_refused(made_path, tmp_path, out):
    read_from = ("--recommender", made_path.full, "--data", made_path.data)
    to = ("--out", tmp_path / "x")
    refused(curerec("circuit", *to), "nothing to look at")
    refused(curerec("circuit", *read_from, *to, "--scorer", "magic"), "magic", "atp_ig")
    refused(curerec("circuit", *read_from, *to, "--corruption", "none"), "corruption")
    refused(curerec("circuit", *read_from, *to, "--select", "top:0"), "top:0", "threshold:X")
    refused(curerec("circuit", *read_from, "--out", made_path.full), "holds")
    refused(curerec("circuit", *read_from, *to, "--units", "column"), "units", "projection")
    refused(curerec("circuit", *read_from, *to, "--units", "rank"), "no rank-one terms")
    refused(curerec("circuit", *read_from, *to, "--start", "user"), "--start", "--corruption history")
    history = ("--corruption", "history", "--edges-most", 256)
    refused(curerec("circuit", *read_from, *to, *history), "--edges-most 256", "--pairs")
    refused(curerec("circuit", *read_from, *to, "--variants", 1), "--variants 1", "at least 2, or 0")
    alone = ("circuit", "--import", out / "circuit.json", *to, "--units", "row")
    refused(curerec(*alone), "needs the recommender", "Give --recommender")
    (tmp_path / "bad.json").write_text("[1]")
    refused(curerec("circuit", "--import", tmp_path / "bad.json", *to), "JSON")
    other = json.loads((out / "circuit.json").read_text())
    other["shape"]["n_layers"] = 3
    (tmp_path / "other.json").write_text(json.dumps(other))
    refused(curerec("circuit", *read_from, "--import", tmp_path / "other.json", *to), "another shape")
    assert not (tmp_path / "x").exists()
