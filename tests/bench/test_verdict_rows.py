"""The benchmark of the verdict: a seed has all of its rows or none, and older files are read as before."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

from curerec.bench.lines import read_lines

VERDICT = Path(__file__).parents[2] / "benchmarks" / "quality" / "verdict"


@pytest.fixture
def script(monkeypatch):
    """``referenced.py`` with seeds that need no model."""
    spec = importlib.util.spec_from_file_location("referenced", VERDICT / "referenced.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "referenced", module)  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "opened_seed", lambda bench, models, dataset, place, seed, kind: seed)
    monkeypatch.setattr(module, "read_yaml", lambda kind, path: types.SimpleNamespace(seeds=[1, 2]))
    return module


def filled(script, rows):
    """The seeds that were made, and the parts that there are of each then."""
    made = []

    def of(seed, parts):
        made.append(seed)
        yield from ({"part": part, "text": "x" * 50} for part in range(parts))

    said = {"recipe": Path(), "models": Path(), "seeds": None, "dataset": "a", "kind": "users"}
    script._fill(argparse.ArgumentParser(), argparse.Namespace(**said, data=None, parts=3), rows, of)
    found = [(row["seed"], row["part"]) for row in script.stored(rows)]
    return made, found


@pytest.mark.slow
def test_a_seed_that_a_kill_stopped_is_made_again_and_no_row_is_glued_to_what_it_left(script, tmp_path):
    rows = tmp_path / "rows.jsonl"
    whole = [(seed, part) for seed in (1, 2) for part in range(3)]
    assert filled(script, rows) == ([1, 2], whole)
    content = rows.read_bytes()
    ends = [k + 1 for k, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(0, len(content), 37):
        rows.write_bytes(content[:cut])
        left = sum(end <= cut for end in ends)
        assert filled(script, rows) == ([1, 2][left:], whole)
    assert filled(script, rows) == ([], whole)


def test_files_with_a_row_a_line_are_read_and_added_to(script, tmp_path):
    rows = tmp_path / "rows.jsonl"
    old = [{"dataset": "a", "seed": 1, "part": part} for part in range(3)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in old) + '{"dataset": "a", "se')
    made, found = filled(script, rows)
    assert made == [2] and found == [(seed, part) for seed in (1, 2) for part in range(3)]
    assert read_lines(rows)[:3] == old and all(row["kind"] == "users" for row in script.stored(rows))


@pytest.mark.parametrize("name", ["results", "expected"])
def test_committed_rows_are_read(script, name):
    path = VERDICT / f"{name}.jsonl"
    assert len(script.stored(path)) >= path.read_bytes().count(b"\n") > 100
