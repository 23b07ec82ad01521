"""Prompts of those who stay that a request changed: which answers an update holds them to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec import pipeline
from curerec.data.forget import draw_request
from curerec.data.splits import examples
from curerec.measuring import sizes_of
from curerec.methods.batches import RetainBatches
from curerec.methods.cure import cure
from curerec.models import logits_of
from curerec.splitting import granted
from made_recommender import DATA, opened, trained
from made_tasks import made_task, short_cure

KINDS = ("users", "items", "interactions")


@pytest.mark.parametrize("of", KINDS)
def test_the_same_examples_with_the_histories_of_before(of):
    task = made_task(of=of)
    before = examples(task.data, task.retain.target, history=task.retain.places)
    for name in ("target", "history", "label"):
        np.testing.assert_array_equal(getattr(task.retain_before, name), getattr(before, name))
    changed = (before.history != task.retain.history).any(1)
    assert changed.any() == (of != "users") and not changed.all()
    shown = task.retain.history[task.retain.history >= 0]
    assert not task.deleted[shown].any() and not task.deleted[task.retain_before.target].any()


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    return opened(trained(tmp_path_factory.mktemp("full"), "full"))


@pytest.mark.parametrize("stored", [True, False])
def test_they_are_held_to_what_was_answered_then(at, stored):
    one = at if stored else replace(at, answered=None)
    split = granted(DATA, at.recipe, at.split, draw_request(DATA, at.split, kind="items", share=0.2))
    task = pipeline.task_for(one, split, seed=0)
    then, now = (logits_of(at.recommender, DATA, part) for part in (split.retain_before, split.retain))
    assert np.abs(then - now).max() > 0.01
    for as_trained, wanted in ((True, then), (False, now)):
        source = RetainBatches(task, 16, as_trained=as_trained)
        index = source.order[: 16 * source.ahead]
        prompts, held = source.encoded(split.retain.take(index), source.asked.take(index))
        np.testing.assert_array_equal(prompts.ids, task.encode(split.retain.take(index)).ids)
        np.testing.assert_allclose(held, wanted[index], atol=1e-5)
    changed = (split.retain.history != split.retain_before.history).any(1)
    config = short_cure(changed_prompts="as_trained")
    unknown = [sizes_of(task, c).unknown_retain for c in (config, short_cure(), None)]
    assert unknown == pytest.approx([0, changed.mean(), changed.mean()] if stored else [1, 1, 1])


def weights(outcome):
    return torch.cat([p.detach().flatten() for p in outcome.model.parameters()])


@pytest.mark.parametrize("of", ["users", "items"])
def test_a_request_that_changes_no_prompt_is_carried_out_as_without(of):
    plain, held = (
        cure(made_task(of=of), short_cure(changed_prompts=changed)) for changed in (None, "as_trained")
    )
    assert torch.equal(weights(plain), weights(held)) == (of == "users")
