"""The page of a circuit: what it says, what it draws, and that nothing of the file can act in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from made_circuit import made_circuit
from made_page import assert_scrolled_by_keys

from curerec.circuits.exchange import CircuitFile
from curerec.errors import DataError
from curerec.reports import circuit_tables as tables
from curerec.reports import circuit_words as say
from curerec.reports.circuit_graph import links
from curerec.reports.circuit_page import render_circuit, write_circuit_page


def test_the_made_file_is_one_the_command_could_write():
    file = CircuitFile.model_validate(made_circuit())
    assert file.model_dump(mode="json") == made_circuit()


def test_all_parts_and_lines_are_drawn():
    file = made_circuit()
    page = render_circuit(file)
    for node in file["nodes"]:
        assert f'data-name="{node["name"]}"' in page
    joined = links(file["edges"], 4, 4)
    assert page.count("data-edge=") == len(joined)
    assert sum(x.score for x in joined) == pytest.approx(sum(e["score"] for e in file["edges"]))


def test_what_scrolls_can_be_scrolled_by_keys():
    assert_scrolled_by_keys(render_circuit(made_circuit()))


def test_parts_that_can_be_chosen_are_in_no_image():
    """ARIA has the children of an ``img`` presentational: to a screen reader it has no parts."""
    graph = re.search(r"<svg[^>]*chart graph.*?</svg>", render_circuit(made_circuit()), re.S)
    assert graph is not None and 'role="button"' in graph[0]
    assert 'role="group"' in graph[0].partition(">")[0] and 'role="img"' not in graph[0]


def test_how_connections_were_chosen_is_said():
    page = " ".join(render_circuit(made_circuit()).split())
    assert "Pairs they were scored on" in page and ">256<" in page.replace(" ", "")
    assert "all heads of a layer together" in page
    bare = made_circuit() | {"edges_granularity": None, "edges_pairs": None}  # of an earlier version
    assert "Pairs they were scored on" not in render_circuit(bare)


def test_update_units_are_a_table_of_the_largest_thirty():
    file = made_circuit()
    page = " ".join(render_circuit(file).split())
    assert "What fine-tuning stored where" in page and "Layer 0, q_proj, row 5" in page
    assert "3 update units (single rows of weights)" in page and "128 validation prompts" in page
    rows = [{"name": f"layers.0.q_proj.row.{k}", "score": (-1) ** k * k / 100, "low": None, "high": None,
             "exact": None} for k in range(50)]  # fmt: skip
    table = tables.unit_table(rows, 30)
    assert len(table.rows) == 30 and table.rows[0][0] == "Layer 0, q_proj, row 49"
    assert table.rows[-1][0] == "Layer 0, q_proj, row 20" and table.rows[0][2] == "–"
    without = made_circuit() | {"units": [], "units_granularity": None, "units_prompts": None}
    assert "What fine-tuning stored" not in render_circuit(without)


def test_its_own_script_is_the_only_one_allowed():
    page = render_circuit(made_circuit())
    scripts = re.findall(r"<script(?P<a>[^>]*)>(?P<b>.*?)</script>", page, re.S)
    assert [a for a, _ in scripts] == [' type="application/json" id="data"', ""]
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert "http://" not in page and "https://" not in page
    data = json.loads(scripts[0][1])
    assert len(data["nodes"]) == 10 and len(data["curve"]) == 11


def test_text_of_a_file_cannot_end_an_element():
    file = made_circuit()
    attack = "</script></svg><script>alert(1)</script><img src=x onerror=alert(1)>"
    file["notes"] = [attack]
    file["about"]["base"] = file["scorer"] = attack
    file["nodes"][0]["name"] = file["units"][0]["name"] = file["units_granularity"] = attack
    page = render_circuit(file)
    assert page.count("<script") == 2 and "<img" not in page


def test_the_words_say_what_the_file_holds():
    file = made_circuit()
    said = say.sentence(file).replace("\u00a0", " ")
    assert said == "5 of 10 parts belong to the circuit; alone they keep 93 % of the answer's margin."
    lines = say.reading(file["nodes"])
    heads = [n for n in file["nodes"] if n["in_graph"] and n["reads"]]
    assert len(lines) == len(heads)
    reads = [line for line in lines if " reads " in line]
    assert reads and all("95 % interval" in line and "of the prompts" in line for line in reads)
    assert "random sets of its size do not" in say.verdict(file["matters"], "the circuit")
    assert "large part" in say.verdict({"lost": 1.0, "lost_random": 0.9}, "it")
    assert "only a part" in say.verdict({"lost": 0.4, "lost_random": 0.1}, "it")
    text = say.necessary_text(file["necessary"][1], file["shape"])
    assert "Prompt to the values of layer 0, head 0" in text and "96\u00a0%" in text and "17\u00a0%" in text


def test_a_bare_import_has_a_page_too():
    bare = CircuitFile.model_validate(
        {
            "shape": {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 4},
            "scorer": "imported",
            "nodes": [{"name": "layers.0.head.0", "in_graph": True}, {"name": "layers.0.mlp"}],
        }
    )
    page = render_circuit(bare.model_dump(mode="json"))
    assert "1 of 2\u00a0parts belongs" in page and "hidden" in page
    with pytest.raises(DataError, match="version 5"):
        render_circuit({"format": "curerec-circuit", "version": 4})


def test_a_large_model_shows_its_heaviest_lines(tmp_path):
    file = made_circuit(layers=12, heads=12)
    path = write_circuit_page(file, tmp_path / "circuit.html")
    page = path.read_text()
    assert page.count("data-edge=") == 400 and "400 heaviest" in page
    assert "more parts" in page


def test_the_fewest_parts_stand_in_the_table_and_every_set_found_is_marked():
    file = made_circuit()
    page = render_circuit(file)
    assert (
        "that are enough" in page and page.count('class="ours"') == 5
    )  # circuits, fewest, two necessary sets
    assert "The fewest parts found" in say.compact_text(file["compact"])
    assert say.compact_rows({**file["compact"], "matters": {}}) == []
    assert "that are enough" not in render_circuit({**file, "compact": None})


def test_the_overlap_of_chance_stands_beside_the_overlap():
    page = " ".join(render_circuit(made_circuit()).replace("\u00a0", " ").split())
    assert (
        "overlap of the circuit over resamples of the pairs; random circuits of its size overlap by 35 %"
        in page
    )
    assert page.count("overlap by 35 %") == 3  # beside the slider, among the measures, of the connections
    file = made_circuit()
    file["nodes_measured"] = file["nodes_measured"] | {"jaccard": 1.0, "jaccard_chance": 1.0}
    assert "which says nothing: it is all there is to choose from" in render_circuit(file)
    file["nodes_measured"] = file["nodes_measured"] | {"jaccard_chance": None}  # of an earlier version
    assert "of the pairs." in render_circuit(file)


def test_connections_have_figures_of_their_own():
    page = " ".join(render_circuit(made_circuit()).replace("\u00a0", " ").split())
    assert "(CPR)</dt><dd>0.610" in page and "(CMD)</dt><dd>0.390" in page
    assert "20 % of the margin, of 1 tried" in page and "Largest gap after losing a random half" in page
    assert "Lost without it" in page and "of the circuit with the largest scores" in page
    table = tables.edge_table(made_circuit()["edges"], 5)
    assert len(table.rows) == 5 and table.rows[0][3] == "5\u00a0%"
    assert "The connections" not in render_circuit(made_circuit() | {"edges": [], "edges_measured": None})


def test_what_became_of_the_pairs_is_said():
    page = " ".join(render_circuit(made_circuit()).split())
    assert (
        "400 asked for, 8 without a twin of the same length, 392 made; of these 350 moved the margin by more "
        "than .001, 96 lowered it, 127 turned the answer round; 96 used, 48 of them to judge"
    ) in page
    assert "84 s for all of it, judging included" in page
    assert say.pairs_text({"moved": 3, "kept": 9}) == (
        "of those that judge 3 moved the margin by more than .001; 9 used"
    )
