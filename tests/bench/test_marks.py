"""Which methods differ from ours by the table, and why some are not compared."""

from __future__ import annotations

import json
import shutil

import pytest
from made_bench import WORTH, line_of, made_recipe, made_rows, table_recipe

from curerec.bench.lines import read_lines
from curerec.bench.summary import summarise, write_summary
from curerec.bench.table import text_table
from curerec.reports.bench_page import render_bench

COMPARED = ["cure", "random_modules", "npo"]


def summary_of(folder, seeds, *, kept=True):
    recipe = made_recipe(seeds=seeds, requests=[{"share": 0.1, "methods": COMPARED}])
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


def test_marks_of_significance(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    summary = write_summary(tmp_path)
    far, near = line_of(summary, "random_modules")["against"], line_of(summary, "npo")["against"]
    assert far["significant"] and far["difference"] < -0.2 and far["high"] < 0
    assert not near["significant"]
    assert line_of(summary, "cure")["against"] is None
    far_excess = line_of(summary, "random_modules")["against_excess"]
    assert far_excess["significant"] and far_excess["difference"] < -0.2
    assert not line_of(summary, "npo")["against_excess"]["significant"]
    text = text_table(summary)
    twin = next(x for x in text.splitlines() if x.startswith("| random_modules"))
    assert "*" in twin.split("|")[2]
    # Where only rows and their summary were kept, the error is the one that the answers gave.
    shutil.rmtree(tmp_path / "predictions")
    for _ in range(2):
        kept = line_of(write_summary(tmp_path), "random_modules")
        for key, whole in (("against", far), ("against_excess", far_excess)):
            assert {k: v for k, v in kept[key].items() if k != "by"} == pytest.approx(
                {k: v for k, v in whole.items() if k != "by"}
            )
    # Of three seeds alone nothing is told, nor by a summary of other rows.
    path = tmp_path / "summary.json"
    changed = json.loads(path.read_text())
    for one in changed["blocks"][0]["lines"]:
        if one["against"]:
            one["against"]["difference"] += 0.01
    path.write_text(json.dumps(changed))
    assert line_of(summarise(tmp_path), "random_modules")["against"] is None
    assert line_of(summarise(tmp_path), "random_modules")["against_excess"]["significant"]
    path.unlink()
    assert line_of(summarise(tmp_path), "random_modules")["against"] is None


def test_marks_are_of_the_rows_at_hand_alone(tmp_path):
    """A mark against an earlier `cure`, left in the summary, must not come back for one that was not run."""
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    assert line_of(write_summary(tmp_path), "random_modules")["against"]["significant"]
    path = tmp_path / "rows.jsonl"
    kept = [r for r in read_lines(path) if r["method"] != "cure"]
    path.write_text("".join(json.dumps(r) + "\n" for r in kept))
    assert line_of(write_summary(tmp_path), "random_modules")["against"] is None
