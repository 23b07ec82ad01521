"""Requests by chosen weights: which move, which go back, and that the twin has as many."""

from __future__ import annotations

import pytest
import torch

from curerec.groups.assign import RETAIN, rows_of_roles
from curerec.methods import METHODS
from curerec.methods.cure.method import CureConfig, update_by_groups
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.rollback import roll_back
from curerec.methods.rules import Rules
from curerec.methods.saliency import (
    only_forgetting,
    remembering,
    salient,
)
from curerec.progress import Clock, Silent
from curerec.recommender.units import units_of
from curerec.testing.methods import check_only_trainable_changed
from made_tasks import made_task
from made_updates import setting

SMALL = {"pairs": 12, "pair_pool": 20, "control_size": 30, "draws": 4, "scope": "all"}
BACK = {"rolled_back": 0.1, "kept": {"forget": 0.5}}


@pytest.mark.parametrize("method", ["cure", "random_modules"])
def test_a_request_moves_the_salient_weights_and_no_other(method):
    task = made_task()
    config = CureConfig.model_validate(
        {**SMALL, "saliency": 0.1, "kept": {"forget": 0.5, "shared": 0.5}, "update": {"max_steps": 3}}
    )
    out = METHODS[method][0](task, config)
    check_only_trainable_changed(out, task)
    old = dict(task.original.model.named_parameters())
    role = rows_of_roles(out.groups)
    total = sum(p.numel() for p in old.values())
    learns = sum(
        int((role[b.unit] == RETAIN).sum()) * old[b.weight].numel() // old[b.weight].shape[b.dim]
        for b in {b.weight: b for b in out.details["units"].branches}.values()
    )
    assert learns < out.n_trainable <= learns + int(0.1 * total)
    assert 0 < out.details["saliency"]["gradient_share"] <= 1


@pytest.mark.slow
def test_salient_weights_hold_more_of_the_gradient_than_the_twin_s():
    config = CureConfig.model_validate({**SMALL, "saliency": 0.1, "update": {"max_steps": 1}})
    held = [
        METHODS[m][0](made_task(), config).details["saliency"]["gradient_share"]
        for m in ("cure", "random_modules")
    ]
    assert held[0] > 2 * held[1]


@pytest.mark.slow_but("None-full-row")
@pytest.mark.parametrize(
    ("saliency", "kind", "granularity"),
    [(None, "full", "row"), (0.05, "full", "row"), (0.05, "lora", "row"), (0.05, "lora", "projection")],
)
def test_the_twin_takes_back_as_many_weights_of_less_memory(saliency, kind, granularity, monkeypatch):
    """And no more weights differ from the original's than the record says.

    Going back scales one of an adapter's two factors: weights drawn in the other would go nowhere.
    """
    reached = []

    def rolled(model, units, deltas, kept, masks):
        at = {branch.weight for branch in units.branches}
        reached.append(sum(int(mask.sum()) for name, mask in masks.items() if name in at))
        roll_back(model, units, deltas, kept, masks)

    monkeypatch.setattr("curerec.methods.rollback.roll_back", rolled)
    settings = {
        **SMALL,
        "granularity": granularity,
        "saliency": saliency,
        "rolled_back": 0.1,
        "kept": {"forget": 0.0, "shared": 0.0},
        "update": {"max_steps": 1},
    }
    task = made_task(kind)
    ours, twin = (
        METHODS[m][0](task, CureConfig.model_validate(settings)) for m in ("cure", "random_modules")
    )
    said = [out.details["rolled_back"] for out in (ours, twin)]
    assert said[0]["weights"] == said[1]["weights"] > 0
    assert reached == [said[0]["weights"]] * 2
    assert said[0]["attributed"] > 2 * abs(said[1]["attributed"])
    for out in (ours, twin):
        check_only_trainable_changed(out, task)
        assert out.n_trainable > said[0]["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("below", [0.99, 1e-6])
def test_of_a_small_request_another_share_goes_back(below):
    settings = {
        **SMALL,
        "rolled_back": 0.1,
        "kept": {"forget": 0.0, "shared": 0.0},
        "update": {"max_steps": 1, "small": {"below": below, "rolled_back": 0.02}},
    }
    plain = {**settings, "update": {"max_steps": 1}}
    task = made_task("full")
    share = 0.02 if below > 0.5 else 0.1
    for method in ("cure", "random_modules"):
        said, usual, asked = (
            METHODS[method][0](task, CureConfig.model_validate(values)).details["rolled_back"]
            for values in (settings, plain, plain | {"rolled_back": share})
        )
        assert said == asked and said["share"] == share
        assert (said["weights"] < usual["weights"]) is (share < 0.1)


@pytest.mark.parametrize("method", ["cure", "random_modules"])
def test_every_stage_is_told_once_and_all_seconds_count(method):
    told = []

    class Noted(Silent):
        def stage(self, name):
            told.append(name)
            return super().stage(name)

    task = made_task()
    task.clock = Clock(Noted())
    settings = {**SMALL, "saliency": 0.1, **BACK, "update": {"max_steps": 1}}
    out = METHODS[method][0](task, CureConfig.model_validate(settings))
    assert told == list(out.details["stages"]) and len(set(told)) == len(told)
    assert out.t_total_s == pytest.approx(sum(out.details["stages"].values()))


def test_weights_that_are_taken_back_need_not_move():
    units, role, gradient, other = setting("row", False)
    moving = only_forgetting(salient(units, role.numpy(), gradient, 0.02), units, role.numpy())
    change = {b.weight: other[b.weight] for b in units.branches}
    rolled = remembering(units, role.numpy(), gradient, change, 0.3)
    rules = Rules(units, role, masks=moving)
    both = sum(int((moving[n] | rolled[n]).sum()) for n in moving)
    assert rules.n_movable(gradient, rolled) == both > rules.n_movable(gradient)
    named = {n: gradient[n] for n in rules.trainable()}
    assert rules.n_movable(named, rolled) == both


@pytest.mark.slow
def test_the_gradient_is_taken_once(monkeypatch):
    """The mask costs no pass: it is of the gradient that the groups were made of."""

    taken = []
    whole = ForgetObjective.gradient
    monkeypatch.setattr(
        ForgetObjective, "gradient", lambda self, *a, **k: (taken.append(1), whole(self, *a, **k))[1]
    )
    counts = []
    for weights in ({}, {"saliency": 0.1}, BACK, {"saliency": 0.1, **BACK}):
        taken.clear()
        settings = {**SMALL, **weights, "update": {"max_steps": 2}}
        METHODS["cure"][0](made_task(), CureConfig.model_validate(settings))
        counts.append(len(taken))
    assert set(counts) == {1}


@pytest.mark.parametrize("size", [2000, 24])
def test_an_update_by_itself_ends_with_the_same_weights(size):
    """A request that goes on after a kill has the groups from a file, and takes the gradient anew."""
    config = CureConfig.model_validate(
        {
            **SMALL,
            "saliency": 0.1,
            "rolled_back": 0.1,
            "kept": {"forget": 0.5, "shared": 0.5},
            "forget_size": size,
            "update": {"max_steps": 3},
        }
    )
    whole = METHODS["cure"][0](made_task(), config)
    task = made_task()
    units = units_of(task.original.model, config.granularity)
    later = update_by_groups(task, config, units, whole.groups, whole.circuit, "cure")
    for (name, p), q in zip(whole.model.named_parameters(), later.model.parameters(), strict=True):
        assert torch.equal(p, q), name
