"""What is too small to be judged is said not to be, and nothing breaks on it."""

from __future__ import annotations

import numpy as np
import pytest

import made_recommender as made
from curerec.data.forget import without_rows
from curerec.judge import judge
from curerec.measure import Candidate
from curerec.opened import base_model


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return made.opened(made.trained(tmp_path_factory.mktemp("small")))


def of_rows(opened, rows):
    deleted = np.zeros(len(opened.data), bool)
    deleted[rows] = True
    return without_rows(opened.data, opened.split, deleted, source="test")


@pytest.mark.parametrize("n", [1, 4])
def test_a_request_of_so_few_examples_is_not_judged(opened, n):
    """Its update is done by then: an error here would lose the result."""
    targets = opened.split.train.target[::-1]
    for k in range(len(targets)):
        split = of_rows(opened, targets[k : k + n])
        if len(split.forget) == n:  # no later history holds them
            break
    assert len(split.forget) == n
    original = Candidate(opened.recommender.model)
    plain = Candidate(base_model(opened, seed=0))
    found = judge(opened, split, original, plain, plain)
    told = {check["name"]: check["passed"] for check in found["checks"]}
    assert found["verified"] is not True
    assert told["membership"] is told["distribution"] is told["deleted_answers"] is None
    assert told["calibration"] is not None
    (reached,) = (check for check in found["checks"] if check["name"] == "all_reached")
    assert reached["passed"] is None and "too few people, or items, in the control set" in reached["text"]


def test_a_single_user_is_judged_with_the_error_of_their_rows(opened):
    """Draws of whole users would give one user no error at all, and any gap would then be a failure."""
    user = opened.data.user_code
    code, n = np.unique(user[opened.split.train.target], return_counts=True)
    split = of_rows(opened, user == code[n.argmax()])
    original = Candidate(opened.recommender.model)
    plain = Candidate(base_model(opened, seed=0))
    found = judge(opened, split, original, plain, plain)
    (check,) = (check for check in found["checks"] if check["name"] == "membership")
    # 1.96 standard errors of an AUC from so few rows on one side are at least this much (Hanley and McNeil).
    assert check["limit"] > 1.5 / np.sqrt(12 * len(split.forget))
