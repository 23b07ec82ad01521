"""What is said of a circuit where little can be: falls that are none, shared heads, counts of some pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_circuit import made_circuit
from made_records import full_record

from curerec.reports import circuit_tables as tables
from curerec.reports import circuit_words as say
from curerec.reports.build import circuit_part
from curerec.reports.circuit_graph import links
from curerec.reports.circuit_page import render_circuit
from curerec.reports.html import render
from made_core import found_circuit

RISES = {"auc": 0.657, "auc_floor": 0.672, "auc_without": 0.670, "auc_random": 0.662}
SHARES = {"lost": (0.657 - 0.670) / (0.657 - 0.672), "lost_random": (0.657 - 0.662) / (0.657 - 0.672)}
NO_SHARES = {"lost": None, "lost_random": None}


def plain(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    "found",
    [
        RISES | NO_SHARES,
        RISES | SHARES,  # as a file of before has it
        {"auc": 0.66, "auc_floor": 0.65, "auc_without": 0.64, "auc_random": 0.65} | NO_SHARES,  # noise
    ],
)
def test_pairs_that_do_not_lower_the_auc_show_nothing(found):
    """Nine tenths of a fall that was none had been \"most of what the model knows\"."""
    found = made_circuit()["matters"] | found
    said = say.verdict(found, "the circuit")
    assert "does not measurably lower the AUC" in said and "cannot show what carries it" in said
    assert "takes" not in said and f"{found['auc_floor']:.3f}" in said
    file = made_circuit()
    file |= {"matters": found, "edges_matter": found, "compact": file["compact"] | {"matters": found}}
    file["necessary"] = [n | {"matters": found} for n in file["necessary"]]
    rows = say.matters_rows(found) + say.compact_rows(file["compact"])
    rows += [row for n in file["necessary"] for row in say.necessary_rows(n)]
    assert not any("of the way" in remark or "the floor" in remark for _, _, remark in rows)
    assert (
        "everything",
        f"{found['auc_floor']:.3f}",
        "what is left without any part: not measurably less",
    ) in rows
    for n in file["necessary"]:
        assert "what the model knows" not in say.necessary_text(n, file["shape"])
    page = plain(render_circuit(file))
    assert "of the way" not in page and page.count("does not measurably lower") == 2  # parts and connections


def test_a_fall_that_was_not_measured_is_not_called_none():
    for found in ({}, {"auc": 0.7}, {"auc": 0.7, "auc_floor": None, "lost": None}, {"lost": 0.9}):
        assert say.verdict(found, "it") == "" and not say.no_fall(found)
    assert "the floor" in say.matters_rows(made_circuit()["matters"])[1][2]


@pytest.mark.parametrize(
    ("heads", "groups", "group", "said"),
    [(9, 3, 1, "heads 3 to 5"), (8, 4, 3, "heads 6 and 7"), (4, 4, 2, "head 2"), (4, 1, 0, "heads 0 to 3")],
)
def test_keys_that_heads_share_are_theirs(heads, groups, group, said):
    """The number of a group is the number of a head only where each has keys of its own."""
    shape = {"n_heads": heads, "n_kv_heads": groups}
    edge = {"source": "layers.0.mlp", "reader": f"layers.1.kv.{group}.k", "score": -3.0, "in_graph": True,
            "low": None, "high": None, "dropped": None}  # fmt: skip
    name = f"{edge['source']}->{edge['reader']}"
    want = f"Layer 0, MLP to the keys of layer 1, {said}"
    assert say.edge_title(name, shape) == want == tables.edge_table([edge], 1, shape).rows[0][0]
    drawn = sorted(int(x.target.rsplit(".", 1)[1]) for x in links([edge], heads, groups))
    assert [int(w) for w in said.split() if w.isdigit()] in (drawn, [drawn[0], drawn[-1]])
    assert say.edge_title(name) == f"Layer 0, MLP to the keys of layer 1, key/value head {group}"
    needed = {"level": "connections", "members": [name], "total": 9, "lost": 0.9, "matters": {}}
    assert want in say.necessary_text(needed, shape)
    assert say.edge_title("input->layers.1.head.2.q") == "Prompt to the queries of layer 1, head 2"


def test_the_page_names_shared_heads():
    file = made_circuit(heads=4)
    file["shape"]["n_kv_heads"] = 2
    file["edges"] = [e for e in file["edges"] if not any(f".kv.{g}." in e["reader"] for g in (2, 3))]
    file["necessary"][1]["members"] = ["input->layers.0.kv.1.v"]
    page = plain(render_circuit(file))
    assert "Prompt to the values of layer 0, heads 2 and 3" in page and "key/value" not in page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"made": 128, "fell": 80, "judged": 32, "replaced": 200},
            "128 made; of these 120 moved the answer, 80 weakened it, 30 turned it round; 64 pairs used, 32 "
            "of them to judge; 3 dropped, because no replacement of equal length was found; 200 replaced.",
        ),
        # Of records from before pairs that fall were counted: figures of the judging half beside all pairs.
        (
            {"made": 128},
            "128 made; of those that judge 120 moved the answer, 30 turned it round; 64 pairs used;",
        ),
        ({}, "altered twin: 120 moved the answer, 30 turned it round; 64 pairs used;"),
    ],
)
def test_of_which_pairs_something_was_counted(more, said):
    record = full_record()
    counts = {"kept": 64, "moved": 120, "flipped": 30, "unaligned": 3, **more}
    record["circuit"] = record["circuit"] | {"pairs": counts}
    assert said in plain(render(record))


def test_who_chose_what_is_said_as_it_was():
    """Prompts that judge choose how many parts there are; that no smaller set would do was never tried."""
    page = plain(render(full_record()))
    assert "measured on prompts that did not rank the parts; they chose how many" in page
    assert "the shortest run from the top of that list" in page
    assert "no say" not in page and "smallest set" not in page
    assert "pairs that did not order them, only said how many are enough" in say.compact_text(
        made_circuit()["compact"]
    )


def test_the_rank_correlation_of_a_record_is_the_one_that_decided():
    """Exact scores are of the ranking half; scores of all pairs have another correlation with them."""
    rng = np.random.default_rng(3)
    scores = (rng.normal(size=(64, 10)) * 0.6 + np.linspace(-0.3, 0.1, 10)).astype(np.float32)
    names = tuple(f"layers.0.head.{k}" for k in range(10))
    circuit = replace(found_circuit((0,), modules=names), scores=scores, exact=scores[:32].mean(0))
    taken = replace(circuit, agreement={"spearman": 1.0, "modules": 10})
    assert circuit_part(taken)["spearman_exact"] == 1.0
    assert 0 < circuit_part(circuit)["spearman_exact"] < 1  # where none was taken, by all pairs
    assert np.isnan(circuit_part(replace(circuit, agreement={"spearman": float("nan")}))["spearman_exact"])
