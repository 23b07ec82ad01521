"""Where a method cannot be compared, the table and the page say why."""

from __future__ import annotations

import shutil

import pytest
from made_bench import made_recipe, made_rows

from curerec.bench.summary import summarise
from curerec.bench.table import text_table
from curerec.reports.bench_page import render_bench

WORTH = {"cure": 0.2, "random_modules": 0.5, "npo": 0.25}


def summary_of(folder, seeds, *, kept=True):
    recipe = made_recipe(seeds=seeds, requests=[{"share": 0.1, "methods": list(WORTH)}])
    made_rows(folder, recipe, worth=WORTH)
    if not kept:
        shutil.rmtree(folder / "predictions")
    return summarise(folder)


@pytest.mark.parametrize(
    "seeds, kept, why",
    [
        ([20, 21], True, "fewer than 3 seeds in common"),
        ([20, 21, 22], False, "single answers were not kept, and without them it takes 5 seeds"),
    ],
)
def test_no_comparison_is_missing_without_a_word(tmp_path, seeds, kept, why):
    summary = summary_of(tmp_path, seeds, kept=kept)
    lines = {one["name"]: one for one in summary["blocks"][0]["lines"]}
    for name in ("random_modules", "npo"):
        assert lines[name]["against"] is None
        assert lines[name]["missing"]["against"] == lines[name]["missing"]["against_excess"] == why
    assert "against" not in lines["cure"]["missing"] and "against" not in lines["retrain"]["missing"]
    assert f"Not compared with cure: random_modules, npo ({why})." in text_table(summary)
    assert render_bench(summary).count(why) == 4  # two methods, residual and excess


def test_a_comparison_of_seeds_alone_says_so(tmp_path):
    page = render_bench(summary_of(tmp_path, [20, 21, 22, 23, 24], kept=False))
    assert page.count(", of seeds alone</td>") == 4
