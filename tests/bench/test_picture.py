"""The picture of several runs holds the rows of each once."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

QUALITY = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"
RUNS = [QUALITY / "nano" / name for name in ("seeds241", "seeds251")]


@pytest.fixture
def picture(monkeypatch):
    monkeypatch.syspath_prepend(str(QUALITY))
    return importlib.import_module("picture")


def test_seeds_of_both_runs_count_once_and_fewer_are_said(picture):
    summary = picture.together(RUNS)
    block = next(
        b for b in summary["blocks"] if (b["dataset"], b["request"]) == ("ml-100k", "users-0.1-random")
    )
    lines = {line["name"]: line for line in block["lines"]}
    rows = [json.loads(text) for run in RUNS for text in (run / "rows.jsonl").read_text().splitlines()]
    for method in ("cure", "gru", "sisa"):
        mine = {
            r["seed"]
            for r in rows
            if (r["method"], r["dataset"], r["request"]) == (method, "ml-100k", "users-0.1-random")
        }
        assert set(lines[method]["seeds"]) == mine
        assert lines[method]["fewer"] == (len(mine) < 10)


def test_a_seed_of_two_runs_is_refused(picture):
    with pytest.raises(SystemExit, match="a seed in common"):
        picture.together([RUNS[0], RUNS[0]])
