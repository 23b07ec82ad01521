"""How long a benchmark says that it will take."""

from __future__ import annotations

import pytest
from made_bench import made_place, made_recipe

from curerec.bench.plan import Job
from curerec.bench.recipe import Ask
from curerec.bench.run import run
from curerec.bench.timing import OF_A_PART, OF_ALL_SHARDS, PRIOR, Estimate

WHOLE, PARTS = (Ask.model_validate({"kind": "users", "share": 0.1, "parts": n}) for n in (1, 10))


def cell(method, ask=WHOLE, dataset="a"):
    return Job("cell", dataset, "nano", 1, ask=ask, method=method)


def test_what_was_seen_goes_before_what_is_like_it():
    told = Estimate()
    told.learn(cell("cure"), 10.0)
    told.learn(cell("cure", dataset="b"), 30.0)
    told.learn(cell("npo"), 2.0)
    assert told.seconds(cell("cure")) == 10.0 and told.seconds(cell("cure", dataset="b")) == 30.0
    assert told.seconds(cell("cure", dataset="c")) == 20.0  # that method elsewhere
    assert told.seconds(cell("gru")) == 6.0  # another method there


def test_ten_requests_in_a_row_are_no_one_request():
    told = Estimate()
    assert told.seconds(cell("cure", PARTS)) == OF_A_PART * 10 * PRIOR["cell"]
    told.learn(cell("cure"), 30.0)
    told.learn(cell("npo"), 2.0)
    assert told.seconds(cell("cure", PARTS)) == OF_A_PART * 10 * 30.0
    told.learn(cell("cure", PARTS), 200.0)
    assert told.seconds(cell("cure", PARTS)) == 200.0
    assert told.seconds(cell("cure")) == 30.0 and told.seconds(cell("gru")) == 16.0


@pytest.mark.parametrize("method", ["sisa", "receraser", "apa"])
def test_a_cell_that_trains_its_shards_costs_trainings(method):
    told = Estimate()
    told.learn(cell("npo"), 2.0)
    assert told.seconds(cell(method)) == OF_ALL_SHARDS * PRIOR["original"]
    told.learn(Job("original", "a", "nano", 1), 40.0)
    assert told.seconds(cell(method)) == OF_ALL_SHARDS * 40.0
    told.learn(cell(method), 50.0)
    assert told.seconds(cell(method)) == 50.0


def test_what_was_there_already_says_nothing_of_how_long_it_takes(tmp_path, monkeypatch):
    """Or a run that goes on would say that all its trainings take no time."""
    learnt = []
    learn = Estimate.learn

    def noted(self, job, seconds):
        learnt.append(job.kind)
        learn(self, job, seconds)

    monkeypatch.setattr(Estimate, "learn", noted)
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    recipe = made_recipe(requests=[{"share": 0.2, "methods": ["npo"]}])
    run(recipe, tmp_path / "out", places=made_place(tmp_path))
    assert {"original", "retrain", "yardstick", "cell"} <= set(learnt)
    learnt.clear()
    (tmp_path / "out" / "rows.jsonl").unlink()
    run(recipe, tmp_path / "out", places=made_place(tmp_path))
    assert {"yardstick", "cell"} <= set(learnt) and not {"original", "retrain"} & set(learnt)
