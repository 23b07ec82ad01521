"""Every script of the speed benchmark runs, at sizes of a second or two, and leaves a row of its settings."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"
SCRIPTS = {  # what else they are given
    "command": [],
    "growth": [],
    "matrix": [],
    "scoring": [],
    "training": [],
    "data": [],
}


@pytest.mark.soak
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_leaves_a_row(name, tmp_path):
    results = tmp_path / "results.jsonl"
    command = [sys.executable, str(SPEED / f"{name}.py"), "--tiny", "--results", str(results), *SCRIPTS[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert rows
    for row in rows:
        assert row["key"]["question"] and row["values"] and row["machine"]["processor"] and row["date"]


@pytest.fixture
def growth(monkeypatch, tmp_path):
    """The script, measuring nothing; given arguments, the sizes that it would have measured."""
    monkeypatch.syspath_prepend(str(SPEED))
    for name in ("common", "growth"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    script = importlib.import_module("growth")
    for name in ("common", "growth"):
        monkeypatch.delitem(sys.modules, name)
    asked = []

    def measured(of, values, config, repeats):
        asked.append(of)
        return {"time_s": {str(n): 1.0 + n for n in values}, "time_exponent": 1.0}

    def run(*arguments):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["growth.py", "--results", str(tmp_path / "rows"), *arguments])
        script.main()
        return list(asked)

    monkeypatch.setattr(script, "measured", measured)
    run.script = script
    return run


def test_growth_measures_anew_what_it_has_of_other_settings(growth, tmp_path, monkeypatch):
    arguments = ("--of", "forget", "history", "--picture", str(tmp_path / "growth.svg"))
    assert growth(*arguments) == ["forget", "history"]
    drawn = (tmp_path / "growth.svg").read_text()
    assert drawn.count('class="curve"') == 2 and ">forget 1.00<" in drawn  # each with its exponent
    assert growth(*arguments) == []
    assert (tmp_path / "growth.svg").read_text() == drawn  # with the rows that are there
    assert growth(*arguments, "--tiny") == ["forget", "history"]
    config_of = growth.script.config_of
    monkeypatch.setattr(
        growth.script, "config_of", lambda tiny: config_of(tiny).model_copy(update={"control_size": 65})
    )
    assert growth(*arguments) == ["forget", "history"]
    monkeypatch.setattr(growth.script, "config_of", config_of)
    monkeypatch.setitem(growth.script.GROWING, "forget", (100, 200))
    assert growth(*arguments) == ["forget"]


def test_growth_takes_rows_of_before_for_others(growth, tmp_path):
    assert growth("--tiny", "--of", "width") == ["width"]
    row = json.loads((tmp_path / "rows").read_text())
    del row["key"]["settings"]
    (tmp_path / "rows").write_text(json.dumps(row) + "\n")
    assert growth("--tiny", "--of", "width") == ["width"]
    assert growth("--tiny", "--of", "width") == []


def test_the_committed_table_is_that_of_the_committed_rows():
    done = subprocess.run(
        [sys.executable, str(SPEED / "table.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout == (SPEED / "table.md").read_text()


def test_repeats_of_a_sitting_are_one_line_and_ratios_stay_within_it(monkeypatch):
    monkeypatch.syspath_prepend(str(SPEED))
    monkeypatch.delitem(sys.modules, "table", raising=False)
    script = importlib.import_module("table")
    monkeypatch.delitem(sys.modules, "table")

    def row(method, seconds, repeat=0, date="2026-01-01"):
        key = {"question": "request", "method": method, "share": 0.1, "n_train": 10, "repeat": repeat}
        machine = {"processor": "one", "device": "cpu", "threads": 1, "versions": {"torch": "2.6"}}
        values = {"t_total_s": seconds, "n_forget": 1, "stages": {"update": seconds / 2}}
        return {"key": key, "values": values, "date": date, "machine": machine, "note": ""}

    rows = [row("cure", 1.0), row("cure", 3.0, 1), row("cure", 2.0, 2), row("retrain", 20.0)]
    lines = [x for x in script.requests([*rows, row("cure", 5.0, date="2026-01-02")]) if " cure " in x]
    assert len(lines) == 2
    assert "| 3 | 2 s (1 to 3) | 1/10 |" in lines[0] and "update 1 |" in lines[0]
    assert "| 1 | 5 s |  |" in lines[1]
