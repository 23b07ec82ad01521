"""Committed rows are found again by their folder's recipe, whatever the recipes that ship have since."""

from __future__ import annotations

from pathlib import Path

import pytest

from curerec.bench.lines import read_lines
from curerec.bench.plan import config_hash, plan
from curerec.bench.recipe import load_bench
from curerec.bench.rows import NEEDED

QUALITY = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"

CONTROLLED = {"cure", "random_groups", "random_modules"}
IN_LOOP = {"cagrad", "gru", "pcgrad", "weighted_sum"}

FOLDERS = ["in_a_row", "looks", "movielens-1m", "nano", "nano/last_two", "nano/others", "nano/twins"]
FOLDERS += ["nano/seeds241", "nano/seeds251", "nano/other_requests", "looks/seeds251", "looks/seeds256"]
FOLDERS += [
    "looks/other_requests",
    "looks/quick",
    "looks/quick/development",
    "looks/rivals",
    "looks/rivals/own_points",
    "looks/rivals/seeds271",
    "movielens-1m/seeds276",
    "looks/seeds256/pushed",
    "quarter",
    "quarter/fresh",
    "quarter/harder",
    "ten_seeds",
]

# Older folders have rows of the other rules that no recipe written out finds again: their loop was another.
RULES = {
    folder: IN_LOOP for folder in ["in_a_row", "in_a_row/development", "looks/rivals", "looks/rivals/points"]
}
RULES |= {folder: IN_LOOP for folder in ["looks/seeds251", "looks/seeds256", "movielens-1m", "ten_seeds"]}
RULES |= {folder: IN_LOOP for folder in ["nano", "nano/last_two", "nano/other_requests", "nano/others"]}
RULES |= {folder: IN_LOOP for folder in ["nano/seeds241", "nano/seeds251", "nano/seeds261"]}
RULES |= {folder: IN_LOOP for folder in ["quarter/fresh", "quarter/harder", "looks/quick"]}
RULES |= {folder: IN_LOOP for folder in ["looks/rivals/seeds271", "movielens-1m/seeds276"]}
RULES["looks"] = {"pcgrad", "weighted_sum"}  # two of its four rules are of a run of other settings


def found_again(folder: str, methods: set[str]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Method and hash of the rows in `folder`, and of the cells that its recipe plans now."""
    recipe = load_bench(str(QUALITY / folder / "recipe.yaml"))
    rows = read_lines(QUALITY / folder / "rows.jsonl", NEEDED)
    cells = [job for job in plan(recipe) if job.kind == "cell" and job.method in methods]
    return (
        {(row["method"], row["config_hash"]) for row in rows if row["method"] in methods},
        {(job.method, config_hash(recipe, job)) for job in cells},
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows_of_cure_and_its_controls_stand(folder):
    """`demo` got other settings, and a run that went on would have measured what was there anew.

    Whoever changes settings that ship writes those of before out in the recipes that took them.
    """
    there, planned = found_again(folder, CONTROLLED)
    assert there and there <= planned


@pytest.mark.parametrize("folder", sorted(RULES))
def test_rows_of_the_other_rules_in_the_loop_stand(folder):
    """Their rates and pushes may change, too: recipes of committed rows have those of before written out."""
    there, planned = found_again(folder, RULES[folder])
    assert there and there <= planned
