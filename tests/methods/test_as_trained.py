"""What an update holds D_r to in a sequence: answers as trained where they were kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curerec import pipeline
from curerec.bench.sequence import explained, one_after_the_other, parts_of
from curerec.measuring import sizes_of
from curerec.methods import METHODS
from curerec.methods.batches import RetainBatches
from curerec.methods.task import Task
from curerec.models import logits_of
from curerec.recommender.stored_answers import StoredAnswers
from curerec.records import Outcome
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


FEW = {"check_size": 30, "batch_size": 32, "max_auc_drop": 1.0, "tolerance": 0.0, "target": "half"}
FOLLOWING = {
    "bad_teacher": {"max_steps": 3, "check_every": 3},
    "scrub": {"max_epochs": 1, "epochs": 1},
    "cau": {"max_steps": 3, "check_every": 3, "reference_size": 30},
    "e2urec": {"lr": 1e-2, "epochs": 1, "teacher": {"epochs": 1.0, "batch_size": 32, "lr": 1e-3}},
}


@pytest.mark.slow_but("scrub", "e2urec")
@pytest.mark.parametrize("method", FOLLOWING)
def test_methods_that_follow_theta_o_on_the_retain_side_follow_them(method, recommender, monkeypatch):
    """And on D_f leave, or aim by, the version at hand."""
    at = opened(recommender)
    new, split = moved(at), granted(DATA, at.recipe, at.split, USERS)
    unlearn, kind = METHODS[method]
    config = kind.model_validate(FEW | FOLLOWING[method])
    # Answers as trained that no update could take for those of the version at hand.
    other = replace(at.answered, logits=at.answered.logits[:, ::-1] + np.float32([3, 0]))
    held, real = [], Task.retain_logits

    def spy(self, examples, prompts=None):
        held.append(examples.target)
        return real(self, examples, prompts)

    monkeypatch.setattr(Task, "retain_logits", spy)
    p_yes = []
    for kept in (None, other):
        held.clear()
        task = pipeline.task_for(replace(new, as_trained=kept), split, seed=0)
        model = unlearn(task, config).model
        assert len(held) and np.isin(np.concatenate(held), split.retain.target).all()
        of_model = replace(at.recommender, model=model)
        logits = torch.from_numpy(logits_of(of_model, DATA, split.retain))
        p_yes.append(float(logits.softmax(-1)[:, 1].mean()))
    assert p_yes[1] < p_yes[0] - 1e-3


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


@pytest.mark.slow
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


def test_a_sequence_says_what_its_parts_did_not_the_last_one_alone(recommender, monkeypatch):
    at, parts = opened(recommender), iter([(40, 3, 0.5), (90, 7, 0.9), (60, 5, 0.7)])

    def carried_out(task, method, config):
        n, core, agreement = next(parts)
        circuit = SimpleNamespace(core=range(core), faithfulness=agreement)
        groups = SimpleNamespace(agreement=np.full(4, agreement))
        model = at.recommender.model
        return Outcome(method, model, 1.0, 2.0, n_trainable=n, circuit=circuit, groups=groups)

    monkeypatch.setattr("curerec.bench.sequence.carry_out", carried_out)
    out = one_after_the_other(at, USERS, 3, "cure", None, seed=0)
    assert (out.t_core_s, out.t_total_s, out.n_trainable) == (3.0, 6.0, 90)
    told = explained(out)
    assert told["circuit_size"] == 7 and told["group_agreement"] == told["faithfulness"] == pytest.approx(0.7)
    assert [part["trainable_parameters"] for part in told["of_parts"]] == [40, 90, 60]
    assert [part["circuit_size"] for part in told["of_parts"]] == [3, 7, 5]
    assert "of_parts" not in explained(Outcome("npo", None, 1.0, 2.0))
