"""The verdict's membership check: against what is expected of a model that never saw the deleted data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import made_recommender as made
from curerec.evaluation.auc import auc
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.verdict import Limits
from curerec.judge import judge
from curerec.measure import ground_of
from curerec.methods import expected
from curerec.opened import base_model
from curerec.splitting import granted


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return made.opened(made.trained(tmp_path_factory.mktemp("expected")))


def judged(opened, new=None, limits=None):
    split = granted(opened.data, opened.recipe, opened.split, made.USERS)
    ground, plain = ground_of(opened, split), Candidate(base_model(opened, seed=0))
    original = Candidate(opened.recommender.model)
    found = judge(opened, split, original, new or plain, plain, ground=ground, limits=limits)
    return found, ground, {check["name"]: check for check in found["checks"]}["membership"]


def test_few_people_leave_the_base_s_word(opened):
    _, ground, check = judged(opened)
    assert ground.memo["expected"] is None
    assert check["value"] == 0  # the base itself, against itself


def test_it_is_what_is_expected_and_its_error(opened, monkeypatch):
    monkeypatch.setattr(expected, "LEAST_CLUSTERS", 3)
    strict = Limits(membership_gap=0.0)
    _, ground, check = judged(opened, limits=strict)
    known = ground.memo["expected"]
    losses = [ground.losses(Candidate(base_model(opened, seed=0)), part) for part in ("forget", "control")]
    shown = auc(-losses[0], -losses[1][known.reference])
    assert check["value"] == pytest.approx(abs(shown - known.auc))
    assert check["limit"] == pytest.approx(1.959964 * known.error)
    people = opened.data.user_code[ground.part("control").target]
    here = np.zeros(len(people), bool)
    here[known.reference] = True
    assert not set(people[here]) & set(people[~here])  # nobody is held against and learned from
    tolerant = judged(opened, limits=Limits(membership_gap=0.3))[2]
    assert tolerant["limit"] == 0.3


def test_what_training_kept_changes_nothing(opened, monkeypatch):
    monkeypatch.setattr(expected, "LEAST_CLUSTERS", 3)
    with_them, without = (judged(one)[1].memo["expected"] for one in (opened, replace(opened, answered=None)))
    assert with_them.auc == pytest.approx(without.auc, abs=1e-4)
    assert with_them.error == pytest.approx(without.error, rel=1e-3)
    assert with_them.reference.tolist() == without.reference.tolist()
