"""What attacks find of original and retrains is found with the yardstick, once for all processes."""

from __future__ import annotations

import types

import pytest
from made_bench import made_place, made_recipe

from curerec.bench.plan import plan
from curerec.bench.work import Workshop
from curerec.evaluation import depth, quantise, relearn

COLUMNS = ["relearn_ratio", "depth", "membership_gap_int8"]
#: Levels to relearn to (of the tiny catalogue nothing is forgotten): there from the start, none, near, far.
LEVELS = [0.9, None, 0.69, 0.01]
STEPS = 4


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Does a job as a process of its own would, and counts models fine-tuned, patched and rounded."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(relearn, "levels", lambda scene: LEVELS)
    monkeypatch.setattr(relearn, "MAX_STEPS", STEPS)
    monkeypatch.setattr(depth, "LEAST", -1.0)  # here no layer carries anything
    monkeypatch.setattr(depth, "Z", -1e9)
    calls = dict.fromkeys(("curve", "outputs_of", "quantised"), 0)
    for module, name in ((relearn, "curve"), (depth, "outputs_of"), (quantise, "quantised")):

        def counted(*args, real=getattr(module, name), name=name, **rest):
            calls[name] += 1
            return real(*args, **rest)

        monkeypatch.setattr(module, name, counted)
    recipe = made_recipe(requests=[{"share": 0.2, "methods": ["grad_diff"]}], columns=COLUMNS)
    jobs, out, places = plan(recipe), tmp_path / "out", made_place(tmp_path)

    def do(kind):
        calls.update(dict.fromkeys(calls, 0))
        for job in jobs:
            if job.kind == kind:
                done = Workshop(recipe, out, places).do(job, {})
        return done[-1][1] if done else None, dict(calls)

    for kind in ("base", "original", "retrain"):
        do(kind)
    return types.SimpleNamespace(do=do, yardsticks=out / "yardsticks")


@pytest.mark.slow
def test_a_cell_finds_of_its_own_model_alone_and_measures_the_same(bench):
    levels = len([level for level in LEVELS if level])
    anew, cost = bench.do("cell")
    (answers,) = bench.yardsticks.iterdir()
    batches = cost["outputs_of"] // 3
    assert cost == {"curve": 3 * levels, "outputs_of": 3 * batches, "quantised": 4} and batches
    bench.do("yardstick")
    (found,) = set(bench.yardsticks.iterdir()) - {answers}
    row, cost = bench.do("cell")
    assert cost == {"curve": levels, "outputs_of": batches, "quantised": 1}
    for column in (f"{name}{bound}" for name in COLUMNS for bound in ("", "_low", "_high")):
        assert row[column] == anew[column] is not None
    found.write_bytes(found.read_bytes()[:-7])  # torn: found again, by each cell
    row, cost = bench.do("cell")
    assert cost["quantised"] == 4 and row["relearn_ratio"] == anew["relearn_ratio"]


@pytest.mark.slow
def test_an_attack_that_fails_leaves_nothing_behind(bench, monkeypatch):
    """Each cell finds out by itself, and says why."""
    monkeypatch.setattr(depth, "family_of", lambda model: 1 / 0)
    bench.do("yardstick")
    assert len(list(bench.yardsticks.iterdir())) == 1
    row, _ = bench.do("cell")
    assert row["depth"] is None and "depth" in row["missing"] and row["relearn_ratio"] is not None
