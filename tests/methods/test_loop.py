"""The loop of all updates by steps: what ends it, what it hands back, what a falling rate changes."""

from __future__ import annotations

import types

import pytest
import torch

from curerec.methods import METHODS
from curerec.methods.loop import CLOSED, LoopConfig, free, walk
from curerec.methods.stopping import Watch
from curerec.progress import Clock
from curerec.recommender import parallel
from made_models import made_model
from made_tasks import made_task


class Seen:
    """Looks that find what was planted: of each, whether the gap is closed and whether utility is harmed."""

    def __init__(self, *found):
        self.first, self.target = {"membership_auc": 0.6}, 0.52
        self.found, self.at = list(found), []
        self.task = types.SimpleNamespace(clock=Clock())

    def look(self, model):
        self.at.append(float(model.weight.detach()))
        closed, harmed = self.found[min(len(self.at), len(self.found)) - 1]
        return {"closed": closed, "harmed": harmed}

    def closed(self, seen):
        return seen["closed"]

    def harmed(self, seen):
        return seen["harmed"]


def steps_of(watch, *, anchor=0.0, undo=None, **options):
    """A weight that starts at 0 and is pushed up by the rate at every step; what the loop says, and more."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    told = []

    def gradients(step):
        model.weight.grad = -torch.ones_like(model.weight)
        return {"noted": float(step)}

    config = LoopConfig(**{"lr": 0.1, "optimizer": "sgd", "average": 0.0, "check_every": 2, **options})
    done = walk(
        watch, config, model, [model.weight], gradients, 10,
        steer=told.append, momentum=0.0, anchor=anchor, undo=undo,
    )  # fmt: skip
    return done, float(model.weight.detach()), told


OPEN, SHUT, BAD = (False, False), (True, False), (True, True)


def test_a_constant_rate_stops_at_the_first_look_that_finds_the_gap_closed():
    done, weight, told = steps_of(Seen(OPEN, SHUT))
    assert (done.steps, done.stop_reason, told) == (4, CLOSED, [])
    assert weight == pytest.approx(0.4) and done.target == 0.52
    assert [point["step"] for point in done.trace] == [0, 2, 4] and done.trace[-1]["noted"] == 3


def test_harm_brings_back_the_look_before():
    done, weight, _ = steps_of(Seen(OPEN, OPEN, BAD))
    assert done.steps == 6 and "utility guard" in done.stop_reason and "step before" in done.stop_reason
    assert weight == pytest.approx(0.4)


def test_harm_at_the_first_look_says_that_no_step_is_left():
    done, weight, _ = steps_of(Seen(BAD))
    assert "what the steps began with is kept" in done.stop_reason and weight == 0


@pytest.mark.parametrize(("found", "left"), [((BAD,), True), ((OPEN, BAD), False), ((SHUT,), False)])
def test_what_the_steps_began_with_is_not_handed_back_if_nobody_looked_at_it(found, left):
    undone = []
    done, *_ = steps_of(Seen(*found), undo=lambda: undone.append(1))
    assert bool(undone) == left == ("left as it was" in done.stop_reason)


@pytest.mark.slow_but("*-full", "npo-lora")
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("method", ["cure", "weighted_sum", "npo"])
def test_harm_at_the_first_look_leaves_the_recommender_as_it_was(method, kind, monkeypatch):
    """Also what had gone back before the first step: the look before is at theta_o."""
    monkeypatch.setattr(Watch, "harmed", lambda self, seen: True)
    task = made_task(kind, of="items")
    loop = {"lr": 1e-2, "max_steps": 2, "check_every": 1, "check_size": 40, "unseen_tokens": "base"}
    back = {"kept": {"forget": 0.2, "shared": 0.2}, "rolled_back": 0.5, "pairs": 8, "pair_pool": 16}
    run, of = METHODS[method]
    outcome = run(task, of.model_validate({**back, "update": loop} if method == "cure" else loop))
    assert "utility guard" in outcome.stop_reason and outcome.details["depth"] is None
    assert outcome.details["unseen_tokens"] == 0
    pairs = zip(outcome.model.parameters(), task.original.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_a_gap_that_stays_open_is_said():
    done, weight, _ = steps_of(Seen(OPEN))
    assert done.steps == 10 and "limit of 10 steps" in done.stop_reason and weight == pytest.approx(1.0)


@pytest.mark.parametrize("last", [OPEN, SHUT, BAD])
def test_a_falling_rate_takes_every_step_and_only_steers_on_the_way(last):
    """Neither a closed gap nor harm on the way ends it; the last look is judged."""
    watch = Seen(SHUT, OPEN, BAD, OPEN, last)
    done, weight, told = steps_of(watch, schedule="linear")
    assert done.steps == 10 and [point["closed"] for point in told] == [True, False, True, False]
    assert weight == pytest.approx(0.1 * (1 + sum(1 - k / 9 for k in range(9))))
    assert weight == pytest.approx(watch.at[-1])  # what was judged is what is handed back
    word = {OPEN: "limit of 10 steps", SHUT: CLOSED, BAD: "were taken all the same"}[last]
    assert word in done.stop_reason and "step before" not in done.stop_reason


def test_an_average_is_looked_at_and_the_iterates_go_on_from_where_they_were():
    plain = Seen(OPEN)
    steps_of(plain)
    averaged = Seen(OPEN)
    _, weight, _ = steps_of(averaged, average=0.9)
    assert all(a < b for a, b in zip(averaged.at, plain.at, strict=True))
    assert weight == pytest.approx(averaged.at[-1])


def test_an_anchor_draws_every_step_back_to_where_the_loop_began():
    """By its share of the way, and with a falling rate by less, as the steps themselves are."""
    _, weight, _ = steps_of(Seen(OPEN), anchor=0.2)
    assert weight == pytest.approx(0.1 * sum(0.8**k for k in range(1, 11)))
    _, weight, _ = steps_of(Seen(OPEN), anchor=0.2, schedule="linear")
    drawn = 0.0
    for rate in [1.0, *(1 - k / 9 for k in range(9))]:
        drawn = (drawn + 0.1 * rate) * (1 - 0.2 * rate)
    assert weight == pytest.approx(drawn)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_every_look_is_at_the_first_processs_weights_and_the_loop_goes_on_from_there(schedule, monkeypatch):
    given = []

    def same(tensors):
        given.append(len(tensors))
        for t in tensors:
            t.detach().fill_(3.0)

    monkeypatch.setattr(parallel, "same", same, raising=False)
    watch = Seen(OPEN)
    done, weight, _ = steps_of(watch, average=0.9, schedule=schedule)
    assert watch.at == [3.0] * 5 and weight == 3.0 and done.steps == 10
    assert given == [2] * 5 + [1]  # the weights and their average, and what is handed back


def test_only_what_was_named_is_free_and_in_that_order():
    model = made_model(60, layers=1)
    names = ["model.norm.weight", "model.embed_tokens.weight"]
    assert [id(p) for p in free(model, names)] == [id(model.get_parameter(n)) for n in names]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(names)
