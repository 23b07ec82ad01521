"""``curerec bench`` on the command line: what it refuses, and the table."""

from __future__ import annotations

import os

import pytest
from made_bench import made_place, made_recipe, made_rows

from curerec.bench.recipe import bench_names
from curerec.bench.shapes import made_shape
from curerec.data import leftovers
from curerec.recommender.storage import load_base
from made_catalogue import made_titles
from made_commands import curerec, refused, tree


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "one of --recipe and --table"),
        (["--recipe", "nano", "--table", "x"], "one of --recipe and --table"),
        (["--recipe", "nosuch"], "Choose from nano, nano_searched, paper, scale"),
        (["--table", "."], "holds no benchmark"),
        (["--recipe", "nano", "--data", "ml-100k"], "Write NAME=PATH"),
        (["--recipe", "nano", "--data", "x=y"], "names no data set"),
        (["--recipe", "nano", "--data", "ml-100k=nowhere"], "Say where it is: --data ml-100k=PATH"),
    ],
)
def test_refusals(arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(curerec("bench", *arguments), part)
    assert not list(tmp_path.iterdir())


GRID = {"seed": 0, "trials": 2, "grids": {"npo": {"updte.lr": [1e-3, 2e-3]}}}


@pytest.mark.parametrize(
    ("change", "part", "code"),
    [
        ({"search": GRID}, "updte holds no settings", 2),
        ({"name": "other"}, "holds the benchmark made, not other", 2),
        ("recipe.yaml", "not of a benchmark", 2),
        ("locked", "another run is at work", 1),
    ],
)
def test_a_refused_run_leaves_the_folder_as_it_was(change, part, code, tmp_path):
    out = tmp_path / "out"
    made_rows(out, made_recipe(seeds=[20, 21, 22]))
    (out / "summary.json").write_text("of before")
    held = leftovers.hold(out) if change == "locked" else None
    if change == "recipe.yaml":
        (out / change).write_text("name: made")
    recipe = made_recipe(**{"seeds": [20, 21, 22], **(change if isinstance(change, dict) else {})})
    (tmp_path / "other.yaml").write_text(recipe.model_dump_json())
    before = tree(out)
    data = f"made={made_place(tmp_path)['made']}"
    result = curerec("bench", "--recipe", tmp_path / "other.yaml", "--out", out, "--data", data)
    if held is not None:
        os.close(held)
    assert result.code == code and part in " ".join(result.err.split())
    assert tree(out) == before


def test_no_page_is_named_before_there_is_one(tmp_path):
    (tmp_path / "mine.yaml").write_text(made_recipe().model_dump_json())
    given = ("--recipe", tmp_path / "mine.yaml", "--data", f"made={tmp_path}")
    result = curerec("bench", *given, "--out", tmp_path / "out", "--minutes", "0.1")
    assert result.code == 0 and result.out.startswith(f"{tmp_path / 'out'}: 0 of 3 cells")


def test_help_names_every_recipe_and_has_an_example():
    shown = " ".join(curerec("bench", "--help").out.split())
    assert "Example: curerec bench" in shown
    shipping = shown.split("Bench recipe that ships (")[1].split(")")[0]
    assert set(shipping.split(", ")) == set(bench_names())


def test_the_table_of_a_folder(tmp_path):
    made_rows(tmp_path, made_recipe(seeds=[20, 21, 22]))
    result = curerec("bench", "--table", tmp_path)
    assert result.code == 0 and not result.err
    assert "## made, nano: users 20 %" in result.out and "| npo |" in result.out
    assert (tmp_path / "bench.html").exists()


def test_a_shape_is_a_base_that_loads(tmp_path):
    folder = made_shape("tiny", list(made_titles().values()), tmp_path / "base")
    model, tokenizer = load_base(folder)
    assert model.config.vocab_size == 8000 and len(tokenizer) < 8000
    before = (folder / "model.safetensors").stat().st_mtime_ns
    made_shape("tiny", [], folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_costs_of_random_weights(tmp_path, monkeypatch):
    """The path of the scale recipe, at a size that fits here."""
    from made_bench import CHANGE, SHORT

    from curerec.bench import rows
    from curerec.bench.lines import read_lines
    from curerec.bench.run import run
    from curerec.bench.summary import write_summary
    from curerec.bench.table import text_table
    from curerec.evaluation.scene import Ground

    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    change = {"split": CHANGE["split"], "model": {"tuning": CHANGE["model"]["tuning"], "lora": {"r": 2}}}
    recipe = made_recipe(
        costs_only=True,
        retrains=1,
        models={"tiny": {"recipe": "lora", "shape": "tiny", "change": change, "every_method": SHORT}},
        requests=[{"share": 0.2, "methods": ["npo"]}],
    )
    asked = []
    monkeypatch.setattr(
        "curerec.evaluation.scene.Ground.logits",
        lambda ground, one, part, inner=Ground.logits: asked.append(part) or inner(ground, one, part),
    )
    done = run(recipe, tmp_path / "out", places=made_place(tmp_path))
    assert not done.failed and not done.blocked
    assert set(asked) == {"forget"}  # what the answers would be is of no interest
    for row in read_lines(tmp_path / "out" / "rows.jsonl"):
        assert row["method"] != "npo" or row["forward_equivalents"] > 0
        columns = {*rows.COLUMNS, *rows.FURTHER}
        there = {name for name in columns if row[name] is not None}
        assert there <= set(rows.COSTS) and row["floor"] is None
        untimed = {rows.LATENCY} if row.get(rows.LATENCY) is None else set()
        assert set(row["missing"]) == (columns - there) | untimed
    text = text_table(write_summary(tmp_path / "out"))
    assert "t_total, s" in text and "AUC" not in text
