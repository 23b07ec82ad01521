"""How far back the weights go: as far as the membership gap asks for, found by looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.groups.assign import FORGET
from curerec.methods import METHODS
from curerec.methods.cure.method import CureConfig
from curerec.methods.rollback import DEPTHS, rolled_back
from curerec.methods.rules import Rules
from curerec.methods.stopping import Watch
from curerec.methods.unlearn import UnlearnConfig
from curerec.recipe import Recipe
from curerec.recommender.units import units_of
from curerec.reports.build import update_part
from made_tasks import made_task

SMALL = {"pairs": 12, "pair_pool": 20, "control_size": 30, "draws": 4, "scope": "all"}


class Told:
    """A watch by which the membership AUC falls as fast as it is told to."""

    def __init__(self, task, original, target, closes):
        self.original = {n: p.detach() for n, p in task.original.model.named_parameters()}
        self.base = task.base_state
        self.first, self.target, self.closes = {"membership_auc": original}, target, closes
        self.looks = 0

    def membership(self, model):
        """By how far the model has come from theta_o towards the base."""
        self.looks += 1
        name = next(n for n, p in self.original.items() if not torch.equal(p, self.base[n]))
        whole = (self.original[name] - self.base[name]).abs().sum()
        gone = (self.original[name] - dict(model.named_parameters())[name].detach()).abs().sum() / whole
        return self.first["membership_auc"] - float(gone) * self.closes


def went(original, target, closes, open_gap, kept=0.0):
    task = made_task()
    units = units_of(task.original.model, "row")
    rules = Rules(units, torch.full((len(units.names),), FORGET))
    watch = Told(task, original, target, closes)
    model, depth = rolled_back(task, rules, np.full(len(units.names), kept), None, watch, open_gap)
    return task, model, depth, watch


@pytest.mark.parametrize(
    ("closes", "open_gap", "wanted"),
    [
        (0.2, 0.1, 0.5),  # .1 of gap; .09 has to go, at .2 a whole way
        (0.1, 0.15, 0.9),  # .85 of the way has to go; exactly .9 would be left to rounding
        (0.1, 0.4, 0.65),
        (0.1, 0.0, 1.0),
        (10.0, 0.1, DEPTHS[0]),  # closes at once: no farther than the least
        (0.01, 0.1, 1.0),  # never closes: all the way
        (0.1, None, 1.0),
    ],
)
def test_the_first_depth_that_leaves_no_more_of_the_gap(closes, open_gap, wanted):
    task, model, depth, watch = went(0.6, 0.5, closes, open_gap)
    assert depth == wanted
    assert watch.looks <= 3 and (open_gap is not None or not watch.looks)
    for name, p in task.original.model.named_parameters():
        goal = p + depth * (task.base_state[name] - p)
        torch.testing.assert_close(dict(model.named_parameters())[name], goal, atol=1e-6, rtol=1e-5)


def test_without_a_gap_the_least_is_gone():
    assert went(0.5, 0.52, 0.1, 0.1)[2] == DEPTHS[0]


def test_kept_says_what_all_of_the_way_is():
    task, model, depth, _ = went(0.6, 0.5, 0.0, 0.1, kept=0.4)
    assert depth == 1.0
    for name, p in task.original.model.named_parameters():
        goal = 0.4 * p + 0.6 * task.base_state[name]
        torch.testing.assert_close(dict(model.named_parameters())[name], goal, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("below", [0.9, 0.01])
def test_a_small_request_takes_settings_of_its_own(below):
    """Of D_f and D_r 101 of 440 examples are to be forgotten here: small below .9, not below .01."""
    small = {"below": below, "lr": 1e-5, "forget_every": 1, "check_every": 1, "open_gap": 0.5}
    update = {"max_steps": 2, "check_every": 2, "lr": 1e-9, "schedule": "linear", "small": small}
    out = METHODS["cure"][0](made_task(), CureConfig.model_validate({**SMALL, "update": update}))
    used = out.details["update"]
    own = {k: v for k, v in small.items() if k != "below"}
    taken = all(getattr(used, k) == v for k, v in own.items())
    assert taken == (below == 0.9) and (used.lr == 1e-9) == (below == 0.01)
    assert [point["step"] for point in out.trace] == ([0, 1, 2] if below == 0.9 else [0, 2])


@pytest.mark.slow_but("full-cure")
@pytest.mark.parametrize("method", ["cure", "random_modules"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_request_goes_as_far_as_the_looks_say_and_the_record_says_how_far(kind, method):
    task = made_task(kind)
    update = {"max_steps": 1, "open_gap": 0.5, "lr": 1e-9}
    settings = {**SMALL, "rolled_back": 0.5, "kept": {"forget": 0.0, "shared": 0.0}, "update": update}
    out = METHODS[method][0](task, CureConfig.model_validate(settings))
    depth = out.details["depth"]
    assert depth in DEPTHS and update_part(out)["depth"] == depth
    watch = Watch(task, CureConfig.model_validate(settings).update)
    assert update_part(out)["target"] == watch.target
    left = watch.membership(out.model) - watch.target
    gap = max(watch.first["membership_auc"] - watch.target, 0.0)
    assert depth == 1.0 or left <= 0.5 * gap + 1e-3


def test_without_it_configurations_keep_their_digest():
    assert "open_gap" not in Recipe().model_dump(mode="json")["cure"]["update"]
    assert UnlearnConfig(open_gap=0.1).digest != UnlearnConfig().digest
