"""Updates that are averaged: one start, other batches, and the mean of their weights is handed back."""

from __future__ import annotations

import pytest
import torch

from curerec.methods import unlearn
from curerec.methods.rules import Rules, uniform
from curerec.recommender.units import units_of
from made_tasks import made_task


def config(**change):
    values = {"schedule": "linear", "max_steps": 3, "check_every": 2, "check_size": 20, "batch_size": 12}
    return unlearn.UnlearnConfig().model_validate({**values, "retain_labels": 0.1, **change})


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("every", [None, 3])
def test_the_mean_of_updates_from_one_start_is_handed_back(kind, every, monkeypatch):
    task, walk = made_task(kind), unlearn.walk
    starts, ends = [], []

    def noted(watch, config, model, params, *rest, **named):
        starts.append([p.detach().clone() for p in params])
        done = walk(watch, config, model, params, *rest, **named)
        ends.append([p.detach().clone() for p in params])
        return done

    monkeypatch.setattr(unlearn, "walk", noted)
    units = units_of(task.original.model, "projection")
    rules = Rules(units, uniform(units), weight=1.0)
    done = unlearn.run(task, rules, config(members=3, forget_every=every))
    assert len(ends) == 3 and done.steps == 9
    assert [point["step"] for point in done.trace] == [0, 2, 3, 9]
    named = dict(done.model.named_parameters())
    for k, name in enumerate(rules.trainable()):
        assert all(torch.equal(one[k], starts[0][k]) for one in starts)
        torch.testing.assert_close(named[name], torch.stack([one[k] for one in ends]).mean(0))
    moved = [sum(float((a - b).abs().sum()) for a, b in zip(ends[0], one, strict=True)) for one in ends[1:]]
    assert all(distance > 0 for distance in moved)  # other batches, another end


def test_the_first_member_is_the_update_without_others(monkeypatch):
    ends = []
    walk = unlearn.walk

    def noted(watch, config, model, params, *rest, **named):
        done = walk(watch, config, model, params, *rest, **named)
        ends.append([p.detach().clone() for p in params])
        return done

    monkeypatch.setattr(unlearn, "walk", noted)
    for members in (1, 2):
        task = made_task()
        units = units_of(task.original.model, "projection")
        unlearn.run(task, Rules(units, uniform(units), weight=1.0), config(members=members, forget_every=3))
    assert all(torch.equal(a, b) for a, b in zip(ends[0], ends[1], strict=True))
