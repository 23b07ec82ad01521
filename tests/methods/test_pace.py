"""How hard an update pushes for the rest of the gap, and where it looks how far it has come."""

from __future__ import annotations

import types

import numpy as np
import pytest

from curerec.config import parse
from curerec.errors import ConfigError
from curerec.methods.pace import MOST, Pace, looked_at
from curerec.methods.rollback import roll_back
from curerec.methods.rules import Rules, uniform
from curerec.methods.unlearn import UnlearnConfig, run
from curerec.methods.unseen import Unseen
from curerec.recipe import Recipe
from curerec.recommender.units import units_of
from made_tasks import made_task


def watching(target, first):
    return types.SimpleNamespace(target=target, first={"membership_auc": first})


def test_an_update_on_its_way_is_pushed_as_before_and_a_slow_one_harder():
    def push(found):
        return Pace(watching(0.5, 0.6), 10, 1.0).push({"step": 5, "membership_auc": found})

    assert push(0.525) == pytest.approx(1)  # three quarters of the way at half of a falling rate
    assert push(0.55) == pytest.approx(MOST)
    assert 0 < push(0.51) < 1
    assert push(0.5) == 0 and push(0.49) == 0
    assert push(0.61) == MOST  # no pace to be seen


def test_the_push_is_bounded_over_several_looks():
    pace = Pace(watching(0.5, 0.6), 30, 1.5)
    found = [pace.push({"step": step, "membership_auc": 0.59}) for step in (5, 10, 15, 20)]
    assert all(0 < one <= 1.5 * MOST for one in found)


def test_after_a_rest_the_push_goes_on_as_it_was():
    """While nothing pushed there was no pace: a gap that opened a little calls for no push thrice as hard."""
    pace = Pace(watching(0.5, 0.6), 60, 1.5)
    assert pace.push({"step": 20, "membership_auc": 0.499}) == 0
    assert pace.push({"step": 40, "membership_auc": 0.501}) == 1.5


def test_what_went_back_before_the_first_step_is_no_pace():
    """Nine tenths of the gap were gone back; reckoned from theta_o the steps seem to have closed them."""
    seen = {"step": 20, "membership_auc": 0.508}
    assert Pace(watching(0.5, 0.6), 60, 4.0, start=0.51).push(seen) == pytest.approx(4 * MOST)
    assert Pace(watching(0.5, 0.6), 60, 4.0).push(seen) < 0.5


@pytest.mark.slow_but("True")
@pytest.mark.parametrize("back", [False, True])
def test_the_pace_is_reckoned_from_what_the_steps_begin_with(back, monkeypatch):
    """What went back, unseen words' embeddings included."""
    task, starts = made_task("full", of="items"), []
    real = Pace.__init__

    def spied(self, watch, steps, push, start=None):
        starts.append((watch, start))
        real(self, watch, steps, push, start)

    monkeypatch.setattr(Pace, "__init__", spied)
    short = {"max_steps": 3, "check_every": 1, "check_size": 40, "schedule": "linear", "paced": True}
    units = units_of(task.original.model, "projection")
    kept = np.full(len(units.names), 0.5) if back else None
    for pace_from in (None, "start"):
        config = UnlearnConfig.model_validate({**short, "pace_from": pace_from, "unseen_tokens": "base"})
        run(task, Rules(units, uniform(units)), config, kept)
    (_, none), (watch, start) = starts
    assert none is None
    model = task.copy_of_model()
    if back:
        roll_back(model, units, task.deltas(units), kept)
    unseen = Unseen.of(task)
    assert unseen is not None and len(unseen.rows)
    unseen.put_back(model)
    assert start == watch.membership(model) != watch.first["membership_auc"]


def test_looks_lie_at_equal_parts_of_the_way():
    """Of the sum of a rate that falls to 0: the first third of the steps is more than half of it."""
    steps, n = 600, 6
    way = np.cumsum(np.arange(steps, 0, -1)) / np.arange(steps, 0, -1).sum()
    at = [way[step - 1] for step in sorted(looked_at(steps, steps // n))]
    np.testing.assert_allclose(at, np.arange(1, n + 1) / n, atol=2e-3)
    for few in range(1, 20):
        for every in range(1, few + 1):
            found = looked_at(few, every)
            assert few in found and min(found) >= 1 and len(found) <= -(-few // every)


def test_an_update_looks_where_it_says():
    task = made_task("full")
    short = {"max_steps": 12, "check_every": 4, "check_size": 40, "schedule": "linear", "looks": "way"}
    units = units_of(task.original.model, "projection")
    done = run(task, Rules(units, uniform(units)), UnlearnConfig.model_validate(short))
    assert [point["step"] for point in done.trace] == [0, 2, 5, 12]
    small = {**short, "small": {"below": 0.9, "max_steps": 8, "check_every": 2}}
    done = run(task, Rules(units, uniform(units)), UnlearnConfig.model_validate(small))
    assert [point["step"] for point in done.trace] == [0, 1, 2, 4, 8]
    small["small"]["looks"] = "steps"
    done = run(task, Rules(units, uniform(units)), UnlearnConfig.model_validate(small))
    assert [point["step"] for point in done.trace] == [0, 2, 4, 6, 8]


def test_a_small_request_has_a_pace_and_looks_of_its_own():
    every = UnlearnConfig.model_validate(
        {
            "schedule": "linear",
            "paced": True,
            "pace_from": "start",
            "looks": "way",
            "small": {"below": 0.1, "pace_from": "original", "looks": "steps"},
        }
    )
    assert [(c.pace_from, c.looks) for c in (every.for_request(n, 100 - n) for n in (9, 10))] == [
        ("original", "steps"),
        ("start", "way"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "more"), [("pace_from", "start", {}), ("looks", "way", {"schedule": "constant"})]
)
@pytest.mark.parametrize("small", [False, True], ids=["whole", "small"])
def test_looks_and_pace_that_cannot_act_are_refused(name, value, more, small):
    asked = {name: value}
    update = {"schedule": "linear", **more, **({"small": {"below": 0.1, **asked}} if small else asked)}
    with pytest.raises(ConfigError, match=name):
        parse(Recipe, {"cure": {"update": update}}, where="recipe")


@pytest.mark.parametrize("kind", [{"paced": True}, {"open_gap": 0.1}])
def test_a_tolerance_beside_what_goes_by_the_target_itself_is_refused(kind):
    """It would be called closed within it, and pushed on all the same."""
    update = {"schedule": "linear", "tolerance": 0.01, **kind}
    with pytest.raises(ConfigError, match="leave tolerance 0"):
        parse(Recipe, {"cure": {"update": update}}, where="recipe")
