"""Committed rows are found again by their folder's recipe, whatever the recipes that ship have since."""

from __future__ import annotations

from pathlib import Path

import pytest

from curerec.bench.lines import read_lines
from curerec.bench.plan import config_hash, plan
from curerec.bench.recipe import load_bench
from curerec.bench.rows import NEEDED

QUALITY = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"


FOLDERS = ["in_a_row", "looks", "movielens-1m", "nano", "nano/last_two", "nano/others", "nano/twins"]
FOLDERS += ["nano/seeds241", "nano/seeds251", "nano/other_requests", "looks/seeds251", "looks/seeds256"]
FOLDERS += [
    "looks/other_requests",
    "looks/seeds256/pushed",
    "quarter",
    "quarter/fresh",
    "quarter/harder",
    "ten_seeds",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows_of_cure_and_its_controls_stand(folder):
    """`demo` got other settings, and a run that went on would have measured what was there anew.

    Whoever changes settings that ship writes those of before out in the recipes that took them.
    """
    recipe = load_bench(str(QUALITY / folder / "recipe.yaml"))
    methods = {"cure", "random_groups", "random_modules"}
    rows = read_lines(QUALITY / folder / "rows.jsonl", NEEDED)
    there = {(row["method"], row["config_hash"]) for row in rows if row["method"] in methods}
    cells = [job for job in plan(recipe) if job.kind == "cell" and job.method in methods]
    assert there and there <= {(job.method, config_hash(recipe, job)) for job in cells}
