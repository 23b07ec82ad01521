"""The two-sided advantage of the best threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from curerec.errors import ConfigError
from curerec.evaluation.advantage import advantage

losses = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=25).map(np.array)


@settings(deadline=None)  # the cores are shared
@given(losses, losses)
def test_equals_scipy_and_is_symmetric(a, b):
    value = advantage(a, b, draws=5)["value"]
    assert value == pytest.approx(ks_2samp(a, b, method="asymp").statistic, abs=1e-12)
    assert value == pytest.approx(advantage(b, a, draws=5)["value"], abs=1e-12)
    assert advantage(a, a, draws=5)["value"] == pytest.approx(0, abs=1e-12)


def test_error_of_independent_rows_is_the_textbook_one():
    rng = np.random.default_rng(0)
    error = advantage(rng.normal(size=600), rng.normal(size=900))["error"]
    assert error == pytest.approx(1.358 * np.sqrt(1 / 600 + 1 / 900), rel=0.1)


def test_equal_distributions_exceed_the_error_in_about_5_percent():
    rng = np.random.default_rng(1)
    found = [advantage(rng.normal(size=100), rng.normal(size=100), draws=100, seed=s) for s in range(200)]
    assert np.mean([f["value"] > f["error"] for f in found]) <= 0.1


def test_users_widen_the_error():
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(30), 10)
    loss = rng.normal(0, 2, 30)[user] + rng.normal(0, 1, 300)
    even = user % 2 == 0
    rows = advantage(loss[even], loss[~even])
    users = advantage(loss[even], loss[~even], groups=(user[even], user[~even]))
    assert users["value"] == rows["value"]
    assert users["error"] > 1.5 * rows["error"]


def test_no_draw_with_both_sets_is_said():
    with pytest.raises(ConfigError, match="no draw held both sets"):
        for seed in range(3000):  # of 25 users none of the five of one set: chance .004
            groups = np.arange(5), np.arange(5, 25)
            advantage(np.zeros(5), np.ones(20), draws=1, seed=seed, groups=groups)


def test_of_a_single_user_rows_are_drawn():
    """All draws of one user are the same set: the error would be as if that set were known without any."""
    rng = np.random.default_rng(3)
    one, others = rng.normal(size=10), rng.normal(size=400)
    users = np.zeros(10), np.arange(400) // 4 + 1
    assert advantage(one, others, groups=users) == advantage(one, others)
    assert advantage(one, others)["error"] > 0.2


@pytest.mark.parametrize(("a", "b"), [([], [1.0, 2.0]), ([1.0, np.nan], [1.0, 2.0]), ([1.0, 2.0], [1.0])])
def test_bad_input_is_named(a, b):
    with pytest.raises(ConfigError, match="losses of the"):
        advantage(np.array(a), np.array(b))
