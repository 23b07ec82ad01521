"""What an update holds D_r to in a sequence: answers as trained where they were kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec import pipeline
from curerec.bench.sequence import one_after_the_other, parts_of
from curerec.measuring import sizes_of
from curerec.methods.batches import RetainBatches
from curerec.models import logits_of
from curerec.recommender.stored_answers import StoredAnswers
from curerec.splitting import granted
from made_recommender import DATA, USERS, opened, trained


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("full"), "full")


def moved(at):
    """The same recommender with other weights: a version that a request made."""
    other = opened(at.recommender.path).recommender.model
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return replace(at, recommender=replace(at.recommender, model=other), answered=None)


def test_the_retain_side_is_held_to_them_and_the_forget_side_is_not(recommender):
    at = opened(recommender)
    new = moved(at)
    split = granted(DATA, at.recipe, at.split, USERS)
    task = pipeline.task_for(replace(new, as_trained=at.answered), split, seed=0)
    first, now = (logits_of(one.recommender, DATA, split.retain) for one in (at, new))
    assert np.abs(first - now).max() > 0.01
    prompts = task.encode(split.retain)
    np.testing.assert_allclose(task.retain_logits(split.retain, prompts), first, atol=1e-5)
    np.testing.assert_allclose(task.original_logits(split.retain, prompts), now, atol=1e-5)
    np.testing.assert_allclose(
        task.forget_original, logits_of(new.recommender, DATA, split.forget), atol=1e-5
    )
    batch, logits = RetainBatches(task, 16).next()
    target = pipeline.task_for(new, split, seed=0)
    same, others = RetainBatches(target, 16).next()
    assert batch.ids.tolist() == same.ids.tolist() and (logits - others).abs().max() > 1e-3


def test_where_nothing_is_known_the_version_at_hand_is_asked(recommender):
    at = opened(recommender)
    new, split = moved(at), granted(DATA, at.recipe, at.split, USERS)
    logits = at.answered.logits.copy()
    logits[::2] = np.nan
    some = StoredAnswers(new.recommender.model, DATA, at.answered.examples, logits)
    task = pipeline.task_for(replace(new, as_trained=some), split, seed=0)
    known = some.find(split.retain)[1]
    assert 0 < known.sum() < len(known)
    found = task.retain_logits(split.retain, task.encode(split.retain))
    first, now = (logits_of(one.recommender, DATA, split.retain) for one in (at, new))
    np.testing.assert_allclose(found, np.where(known[:, None], first, now), atol=1e-5)
    assert sizes_of(task).unknown_retain == pytest.approx(1 - known.mean())
    # Other ratings: rows mean other examples there.
    assert (
        pipeline.task_for(replace(new, as_trained=some, data=replace(DATA)), split, seed=0).as_trained is None
    )


def test_a_sequence_keeps_the_answers_and_not_those_of_the_version_before(recommender, monkeypatch):
    """Each part's update is handed the answers as trained; without, each one's own theta_o is asked."""
    at = opened(recommender)
    config = at.recipe.config_of("npo")
    seen = []
    real = pipeline.task_for

    def spy(*args, **more):
        seen.append(real(*args, **more))
        return seen[-1]

    monkeypatch.setattr("curerec.bench.sequence.task_for", spy)
    for kept in (True, False):
        seen.clear()
        one_after_the_other(at, USERS, 3, "npo", config, seed=0, as_trained=kept)
        assert len(seen) == len(parts_of(USERS, 3, 0)) == 3
        assert all((task.as_trained is at.answered) == kept for task in seen)
        last = seen[-1]
        held = last.retain_logits(last.retain, last.encode(last.retain))
        first = logits_of(at.recommender, DATA, last.retain)
        assert (np.abs(held - first).max() < 1e-4) == kept
    # A recommender whose answers were not stored is asked once, before the first part.
    seen.clear()
    one_after_the_other(replace(at, answered=None), USERS, 3, "npo", config, seed=0, as_trained=True)
    kept = seen[-1].as_trained
    np.testing.assert_allclose(kept.logits, at.answered.find(kept.examples)[0], atol=1e-5)
