"""The loss attack."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from curerec.errors import ConfigError
from curerec.evaluation.membership import membership, privleak, tpr_at_fpr

losses = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=25).map(np.array)


def both(forget, control):
    return np.r_[np.ones(len(forget)), np.zeros(len(control))], np.r_[forget, control]


def test_members_are_those_with_the_lower_loss():
    rng = np.random.default_rng(0)
    forget, control = rng.gamma(2, 0.3, 300), rng.gamma(2, 0.4, 300)
    found = membership(forget, control, draws=200)
    label, loss = both(forget, control)
    assert found["auc"] == pytest.approx(roc_auc_score(label, -loss), abs=1e-12)
    assert 0.5 < found["low"] < found["auc"] < found["high"]
    assert found["se"] == pytest.approx((found["high"] - found["low"]) / 3.92, rel=0.15)


@settings(deadline=None)  # the cores are shared
@given(losses, losses)
def test_swapping_the_sets_mirrors_the_auc(a, b):
    assert membership(a, b, draws=5)["auc"] + membership(b, a, draws=5)["auc"] == pytest.approx(1, abs=1e-12)


@settings(deadline=None)  # the cores are shared
@given(losses, losses, st.sampled_from([0.0, 0.01, 0.2, 0.5]))
def test_low_false_positive_end_equals_scikit_learn(a, b, fpr):
    label, score = both(a, b)
    x, y, _ = roc_curve(label, score, drop_intermediate=False)
    assert tpr_at_fpr(a, b, fpr) == pytest.approx(y[x <= fpr + 1e-9].max())


def test_one_percent_of_two_hundred_are_two():
    control = np.arange(200.0)  # scores; two false alarms allowed, so the threshold is 197
    assert tpr_at_fpr(np.array([196.0, 197.0, 198.0, 500.0]), control) == 0.5


def test_the_same_distribution_is_not_told_apart():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        found = membership(rng.gamma(2, 1, 80), rng.gamma(2, 1, 80), draws=150, seed=seed)
        covered += found["low"] <= 0.5 <= found["high"]
    assert covered >= 88


def test_groups_widen_the_interval_where_users_differ():
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(20), 10)
    loss = rng.gamma(2, 1, 20)[user] + rng.gamma(2, 0.1, 200)
    sides = loss[user % 2 == 0], loss[user % 2 == 1]
    rows = membership(*sides)
    users = membership(*sides, groups=(user[user % 2 == 0], user[user % 2 == 1]))
    assert users["auc"] == rows["auc"]
    assert users["high"] - users["low"] > 1.5 * (rows["high"] - rows["low"])


def test_privleak_has_the_sign_of_muse():
    assert privleak(1.0, 0.5) == -100  # untouched
    assert privleak(0.48, 0.48) == 0
    assert privleak(0.3, 0.5) == pytest.approx(40)  # over-forgotten
    assert math.isnan(privleak(0.5, 1.0))


@pytest.mark.parametrize(
    ("forget", "control", "says"),
    [
        ([], [1.0, 2.0], "forget set: 0 rows"),
        ([1.0, 2.0], [1.0], "control set: 1 rows"),
        ([1.0, np.nan], [1.0, 2.0], "forget set: holds values"),
        ([1.0, 2.0], [np.inf, 2.0], "control set: holds values"),
    ],
)
def test_bad_input_is_named(forget, control, says):
    with pytest.raises(ConfigError, match=says):
        membership(np.array(forget), np.array(control))


def test_the_false_positive_rate_is_a_rate():
    with pytest.raises(ConfigError, match="fpr"):
        tpr_at_fpr(np.array([1.0]), np.array([1.0]), 1.0)
