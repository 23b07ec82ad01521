"""An update that is drawn back to where its steps began: to what has gone back, by so much a step."""

from __future__ import annotations

import pytest
import torch
from test_saliency import SMALL

from curerec.methods import METHODS
from curerec.methods.cure.method import CureConfig
from curerec.methods.unlearn import SmallRequests, UnlearnConfig
from curerec.methods.weighted_sum import WeightedSumConfig
from curerec.recipe import Recipe
from made_cases import of_all
from made_tasks import made_task

STEPS = {"forget_loss": "rewind", "lr": 1e-2, "max_steps": 6, "check_every": 6, "average": 0.0}
STEPS |= {"max_auc_drop": 1.0}  # whatever they harm, all are taken


def ended(method, task, **update):
    """An update that takes weights back before it steps, and its weights by name."""
    settings = {**SMALL, "saliency": 0.5, "rolled_back": 0.3, "kept": {"forget": 0.5, "shared": 0.5}}
    config = CureConfig.model_validate({**settings, "update": {**STEPS, **update}})
    out = METHODS[method][0](task, config)
    return out, {name: p.detach() for name, p in out.model.named_parameters()}


def distance(a, b):
    return sum(float((a[name] - b[name]).detach().square().sum()) for name in a) ** 0.5


@pytest.mark.slow
@of_all(
    [("cure", "full", "linear"), ("random_modules", "lora", "constant")],
    method=["cure", "random_modules"],
    kind=["full", "lora"],
    schedule=["constant", "linear"],
)
def test_the_more_it_draws_the_less_is_left_of_the_steps(method, kind, schedule):
    """It draws to the weights that went back, not to theta_o: that is where the steps begin."""
    task = made_task(kind)
    _, start = ended(method, task, schedule=schedule, lr=1e-12)
    free, held, fixed = (
        distance(ended(method, task, schedule=schedule, anchor=anchor)[1], start)
        for anchor in (None, 0.2, 0.999)
    )
    assert 0 < fixed < 0.9 * held and held < 0.9 * free
    assert schedule == "linear" or fixed < 0.01 * free  # it falls with the rate: the last steps are kept
    assert distance(start, dict(task.original.model.named_parameters())) > 0


def test_none_and_nothing_are_the_same():
    task = made_task()
    none, nothing = (ended("cure", task, anchor=anchor)[1] for anchor in (None, 0.0))
    assert all(torch.equal(none[name], nothing[name]) for name in none)


@pytest.mark.parametrize("below", [0.99, 1e-6])
def test_a_small_request_has_an_anchor_of_its_own(below):
    out, _ = ended("cure", made_task(), anchor=0.2, small={"below": below, "anchor": 0.0})
    assert out.details["update"].anchor == (0.0 if below == 0.99 else 0.2)


@pytest.mark.slow
def test_the_loop_alone_takes_it_too():
    task, moved = made_task("full"), []
    for anchor in (None, 0.5):
        config = WeightedSumConfig.model_validate({**STEPS, "anchor": anchor})
        out = METHODS["weighted_sum"][0](task, config)
        weights = {name: p.detach() for name, p in out.model.named_parameters()}
        moved.append(distance(weights, dict(task.original.model.named_parameters())))
    assert moved[1] < 0.8 * moved[0]


def test_without_it_configurations_keep_their_digest():
    assert "anchor" not in Recipe().model_dump(mode="json")["cure"]["update"]
    assert "anchor" not in SmallRequests(below=0.1).model_dump()
    assert UnlearnConfig(anchor=0.1).digest != UnlearnConfig().digest
