"""What theta_o answered in training is not asked again, and nothing else passes for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from curerec import pipeline
from curerec.measuring import sizes_of
from curerec.methods import task as tasks
from curerec.methods.batches import RetainBatches
from curerec.methods.stopping import Stopping, Watch
from curerec.models import logits_of
from curerec.opened import base_model
from curerec.recommender import stored_answers
from curerec.recommender.storage import CARD
from curerec.records import ForgetRequest
from curerec.splitting import granted
from curerec.workload import of_cure
from made_recommender import DATA, USERS, opened, trained


@pytest.fixture(scope="module", params=["full", "lora"])
def recommender(request, tmp_path_factory):
    return trained(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def scored(monkeypatch):
    """Prompts that requests score with theta_o."""
    seen, real = [], tasks.score

    def count(model, prompts, answers, **more):
        seen.append(prompts)
        return real(model, prompts, answers, **more)

    monkeypatch.setattr(tasks, "score", count)
    return seen


def test_training_keeps_them_and_plain_libraries_load_the_folder(recommender):
    at = opened(recommender)
    logits, found = at.answered.find(at.split.train)
    assert found.all() and len(logits) == 150
    for part in (at.split.train, at.split.control):
        for base, model in ((False, at.recommender.model), (True, base_model(at, seed=0))):
            told, found = at.answered.find(part, base=base)
            assert found.all()  # 150 examples are fewer than the base is asked about
            np.testing.assert_allclose(told, logits_of(at.recommender, DATA, part, model), atol=1e-5)
    np.testing.assert_allclose(logits, logits_of(at.recommender, DATA, at.split.train), atol=1e-5)
    assert not at.answered.find(at.split.valid)[1].any()
    plain = AutoModelForCausalLM.from_pretrained(
        recommender if "lora" not in recommender.name else recommender.parent / "base"
    )
    if "lora" in recommender.name:
        plain = PeftModel.from_pretrained(plain, recommender)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids).logits for m in (at.recommender.model, plain.eval()))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow_but("full")
def test_a_request_does_the_same_with_them_and_scores_less(recommender, scored):
    at = opened(recommender)
    with_them, split = pipeline.unlearn(at, USERS, "cure")
    n_with = sum(map(len, scored))
    scored.clear()
    without, _ = pipeline.unlearn(replace(at, answered=None), USERS, "cure")
    n_without = sum(map(len, scored))
    drawn = 4 * 16  # what RetainBatches scores a batch at a time, up to all of D_r
    assert n_without - n_with >= len(split.forget) + min(drawn, len(split.retain))
    assert with_them.groups.role.tolist() == without.groups.role.tolist()
    logits = [logits_of(at.recommender, DATA, split.valid, o.model) for o in (with_them, without)]
    np.testing.assert_allclose(*logits, atol=2e-5)
    assert np.abs(logits[0] - logits_of(at.recommender, DATA, split.valid)).max() > 1e-3
    for a, b in zip(with_them.trace, without.trace, strict=True):
        assert a.get("retain_loss", 0) == pytest.approx(b.get("retain_loss", 0), abs=1e-5)


@pytest.mark.parametrize("kind", ["items", "interactions"])
def test_prompts_that_a_deletion_changes_are_scored_again_and_no_others(recommender, scored, kind):
    at = opened(recommender)
    ids = tuple(DATA.items[[3, 4, 5, 6]])
    if kind == "interactions":
        rows = at.split.train.history[at.split.train.history >= 0][::40]
        rows = np.r_[rows, at.split.train.target[:2]]
        ids = tuple((DATA.users[DATA.user_code[r]], DATA.items[DATA.item_code[r]]) for r in rows)
    split = granted(DATA, at.recipe, at.split, ForgetRequest(kind, ids))
    task = pipeline.task_for(at, split, seed=0)
    before = {t: h.tobytes() for t, h in zip(at.split.train.target, at.split.train.history, strict=True)}
    changed = np.asarray(
        [before[t] != h.tobytes() for t, h in zip(split.retain.target, split.retain.history, strict=True)]
    )
    assert 0 < changed.sum() < len(changed)
    prompts = task.encode(split.retain)
    logits = task.original_logits(split.retain, prompts)
    (again,) = scored
    assert again.ids.tolist() == prompts.take(changed).ids.tolist()
    np.testing.assert_allclose(logits, logits_of(at.recommender, DATA, split.retain), atol=1e-5)
    scored.clear()
    assert len(task.forget_original) == len(split.forget) and not scored


def test_batches_of_the_retain_set_do_not_depend_on_them(recommender):
    at = opened(recommender)
    split = granted(DATA, at.recipe, at.split, USERS)
    streams = [
        RetainBatches(pipeline.task_for(one, split, seed=0), 16, ahead=2)
        for one in (at, replace(at, answered=None))
    ]
    for _ in range(12):
        (p, a), (q, b) = (stream.next() for stream in streams)
        assert p.ids.tolist() == q.ids.tolist()
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.slow_but("full")
def test_nothing_else_passes_for_them(recommender, tmp_path):
    """A planted file of other weights, also with its digest in the card; a damaged one; other ratings."""
    kind = recommender.name.split("-")[0]
    shutil.copytree(recommender.parent / "base", tmp_path / "base")
    other = trained(tmp_path, kind, seed=1)
    assert opened(other).answered is not None
    mine = shutil.copytree(recommender, tmp_path / "mine")
    whole = (mine / stored_answers.FILE).read_bytes()
    (mine / stored_answers.FILE).write_bytes((other / stored_answers.FILE).read_bytes())
    assert opened(mine).answered is None
    card = json.loads((mine / CARD).read_text())
    theirs = json.loads((other / CARD).read_text())[stored_answers.DIGEST]
    (mine / CARD).write_text(json.dumps({**card, stored_answers.DIGEST: theirs}))
    assert opened(mine).answered is None
    (mine / CARD).write_text(json.dumps(card))
    for damaged in (whole[:-4], b"", whole[:-4] + b"\0\0\0\1", whole + b"\0" * 8):
        (mine / stored_answers.FILE).write_bytes(damaged)
        assert opened(mine).answered is None
    (mine / stored_answers.FILE).unlink()
    assert opened(mine).answered is None
    (mine / stored_answers.FILE).write_bytes(whole)
    at = opened(mine)
    assert at.answered is not None
    titles = DATA.titles.set_column(1, "title", [DATA.titles["title"].to_pylist()[::-1]])
    assert stored_answers.read(at.recommender, replace(DATA, titles=titles), at.split.train) is None
    assert stored_answers.read(at.recommender, DATA, at.split.control) is None


def test_another_model_in_its_place_is_scored(recommender):
    at = opened(recommender)
    split = granted(DATA, at.recipe, at.split, USERS)
    assert pipeline.task_for(at, split, seed=0).answered is at.answered
    other = opened(recommender).recommender.model
    swapped = replace(at, recommender=replace(at.recommender, model=other))
    left = pipeline.task_for(swapped, split, seed=0).answered
    assert not left.find(at.split.train)[1].any()
    assert left.find(at.split.train, base=True)[1].all()  # the base is the same
    without = replace(swapped, answered=replace(at.answered, base=None))
    assert pipeline.task_for(without, split, seed=0).answered is None
    assert pipeline.task_for(replace(at, data=replace(DATA)), split, seed=0).answered is None


@pytest.mark.slow_but("full")
def test_neither_an_unlearned_recommender_nor_a_retrain_has_any(recommender, tmp_path):
    at = opened(recommender)
    outcome, _ = pipeline.unlearn(at, USERS, "cure")
    new = recommender.parent / "new"
    pipeline.save_unlearned(at, outcome, USERS, new)
    again = trained(recommender.parent, recommender.name.split("-")[0], without=USERS)
    for folder in (new, again):
        assert not (folder / stored_answers.FILE).exists()
        assert stored_answers.DIGEST not in json.loads((folder / CARD).read_text())
        assert opened(folder).answered is None


def test_what_an_update_aims_for_costs_no_pass(recommender, scored, monkeypatch):
    """Base and theta_o on D_c and D_r, and the base on D_f, are known; D_v is what is left to ask."""
    monkeypatch.setattr("curerec.methods.expected.LEAST_CLUSTERS", 5)
    at = opened(recommender)
    split = granted(DATA, at.recipe, at.split, USERS)
    watch = Stopping(check_size=12, target="expected")
    loaded = []
    monkeypatch.setattr(pipeline, "fresh_model", lambda *_, **__: loaded.append(1))
    known = Watch(pipeline.task_for(at, split, seed=0), watch)
    assert not scored and not loaded
    monkeypatch.undo()
    monkeypatch.setattr("curerec.methods.expected.LEAST_CLUSTERS", 5)
    asked = Watch(pipeline.task_for(replace(at, answered=None), split, seed=0), watch)
    assert known.target == pytest.approx(asked.target, abs=1e-3)
    assert known.target != Watch(pipeline.task_for(at, split, seed=0), Stopping(check_size=12)).target


def test_the_plan_does_not_count_what_is_stored(recommender):
    at = opened(recommender)
    split = granted(DATA, at.recipe, at.split, USERS)
    with_them, without = (
        of_cure(at.recipe.cure, sizes_of(pipeline.task_for(one, split, seed=0)))
        for one in (at, replace(at, answered=None))
    )
    fewer = {k: sum(w.forwards for w in without[k]) - sum(w.forwards for w in with_them[k]) for k in without}
    assert at.recipe.cure.update.forget_loss == "rewind"  # which asks the model and its base
    assert fewer["contributions"] == 2 * len(split.forget)
    assert fewer["update"] == len(split.retain)  # all of it is prepared at a time
