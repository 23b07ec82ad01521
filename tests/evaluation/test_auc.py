"""AUC: parity, symmetry, standard error, bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from curerec.errors import ConfigError
from curerec.evaluation.auc import Z95, auc, auc_interval, auc_se

coarse = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30).map(np.array)


@settings(deadline=None)  # the cores are shared
@given(coarse, coarse)
def test_equals_scikit_learn_with_ties(a, b):
    label = np.r_[np.ones(len(a)), np.zeros(len(b))]
    assert auc(a, b) == pytest.approx(roc_auc_score(label, np.r_[a, b]), abs=1e-12)


@settings(deadline=None)  # the cores are shared
@given(coarse, coarse)
def test_swapping_the_sets_mirrors_it(a, b):
    assert auc(a, b) + auc(b, a) == pytest.approx(1, abs=1e-12)
    assert auc(a, a) == pytest.approx(0.5, abs=1e-12)


def test_standard_error_is_the_scatter_over_samples():
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0.8, 1, 80), rng.normal(0, 1, 50)) for _ in range(400)]
    scatter = np.std([auc(a, b) for a, b in pairs])
    assert np.mean([auc_se(a, b) for a, b in pairs]) == pytest.approx(scatter, rel=0.1)


def test_standard_error_of_a_hand_case():
    # Shares won: positives 3/4, 1; negatives lose 1/2... V = (0.75, 1) and (0, 0.25): both variances 1/32.
    assert auc_se(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(np.sqrt(2 * (1 / 32) / 2))


def test_interval_covers_in_about_95_percent():
    rng = np.random.default_rng(1)
    truth = norm.cdf(0.5 / np.sqrt(2))
    hits = 0
    for seed in range(300):
        low, high = auc_interval(rng.normal(0.5, 1, 60), rng.normal(0, 1, 60), draws=200, seed=seed)
        hits += low <= truth <= high
    assert 0.90 <= hits / 300 <= 0.985


def clustered(rng, users=40, rows=8):
    """Scores with a part that all rows of a user share; membership by row, so the AUC is 0.5."""
    user = np.repeat(np.arange(users), rows)
    own = rng.normal(0, 2, users)[user] + rng.normal(0, 1, users * rows)
    member = user % 2 == 0
    return own[member], own[~member], (user[member], user[~member])


def test_clustered_interval_covers_where_the_rowwise_one_does_not():
    rng = np.random.default_rng(2)
    hits = {"rows": 0, "users": 0}
    for seed in range(150):
        a, b, groups = clustered(rng)
        for name, given_groups in (("rows", None), ("users", groups)):
            low, high = auc_interval(a, b, draws=200, seed=seed, groups=given_groups)
            hits[name] += low <= 0.5 <= high
    assert hits["rows"] / 150 < 0.7
    assert 0.88 <= hits["users"] / 150 <= 0.99


def test_interval_agrees_with_the_analytic_error_and_repeats():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.3, 1, 500), rng.normal(0, 1, 500)
    low, high = auc_interval(a, b, seed=4)
    assert (high - low) / 2 == pytest.approx(Z95 * auc_se(a, b), rel=0.1)
    assert auc_interval(a, b, seed=4) == (low, high)
    assert auc_interval(a, b, seed=5) != (low, high)


@settings(max_examples=25, deadline=None)
@given(coarse, coarse, st.integers(0, 9))
def test_interval_of_a_resample_is_what_a_plain_loop_gives(a, b, seed):
    draws = 7
    rng = np.random.default_rng(seed)
    index = [rng.integers(0, len(x), (draws, len(x))) for x in (a, b)]
    plain = [auc(a[i], b[j]) for i, j in zip(*index, strict=True)]
    expected = tuple(np.quantile(plain, [0.025, 0.975]))
    assert auc_interval(a, b, draws=draws, seed=seed) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "options", "says"),
    [
        ([], [1.0], {}, "at least 1"),
        ([1.0], [np.nan], {}, "not finite"),
        ([[1.0]], [1.0], {}, "2 axes"),
        ([1.0], [1.0], {"draws": 0}, "at least 1"),
        ([1.0], [1.0], {"level": 1.0}, "between 0 and 1"),
        ([1.0, 2.0], [1.0], {"groups": ([0], [1])}, "for 2, 1 rows"),
    ],
)
def test_bad_input_is_named(a, b, options, says):
    with pytest.raises(ConfigError, match=says):
        auc_interval(np.array(a), np.array(b), **options)


def test_a_standard_error_needs_two_a_side():
    with pytest.raises(ConfigError, match="at least 2"):
        auc_se(np.array([1.0]), np.array([1.0, 2.0]))
