"""How long a benchmark says that it will take."""

from __future__ import annotations

import pytest

from curerec.bench.plan import Job
from curerec.bench.recipe import Ask
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
