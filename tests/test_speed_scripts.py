"""Every script of the speed benchmark runs, at sizes of a second or two, and leaves a row."""

from __future__ import annotations

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

pytestmark = pytest.mark.soak


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
