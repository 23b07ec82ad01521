"""Utility metrics: parity with scikit-learn, calibration, sets of one class."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from curerec.errors import ConfigError
from curerec.evaluation.inputs import equal_mass, p_yes
from curerec.evaluation.on_test import _interval
from curerec.evaluation.utility import ece, ece_draws, ece_rise, nll, utility


def drawn(seed, n=300):
    rng = np.random.default_rng(seed)
    z = rng.normal(0.3, 1.5, n)
    logits = rng.normal(size=(n, 1)) + np.c_[np.zeros(n), z]
    return logits, (rng.random(n) < expit(z)).astype(np.int8)


@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn(seed):
    logits, label = drawn(seed)
    found, p = utility(logits, label), p_yes(logits)
    assert found["auc"] == pytest.approx(roc_auc_score(label, p), abs=1e-12)
    assert found["acc"] == accuracy_score(label, p > 0.5)
    assert found["log_loss"] == pytest.approx(log_loss(label, p), abs=1e-9)
    assert found["missing"] == {}


def test_margins_do_as_well_as_logits():
    logits, label = drawn(3)
    a, b = utility(logits, label), utility(logits[:, 1] - logits[:, 0], label)
    assert a == b


def test_ece_by_hand():
    p = np.array([0.1, 0.1, 0.9, 0.9])
    # Ties share a bin: |0.1 - 0.5| and |0.9 - 1|, each half of the mass.
    assert ece(p, np.array([0, 1, 1, 1])) == pytest.approx(0.25)


@settings(deadline=None)  # the cores are shared
@given(st.permutations(range(12)))
def test_ece_does_not_depend_on_the_order_of_rows(order):
    p, y = np.repeat([0.2, 0.5, 0.8], 4), np.array([0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    order = np.array(order)
    assert ece(p[order], y[order], bins=5) == pytest.approx(ece(p, y, bins=5), abs=1e-15)


def test_ece_without_ties_is_the_mean_over_fifteen_equal_bins():
    rng = np.random.default_rng(4)
    p = rng.permutation(np.linspace(0.01, 0.99, 150))
    y = rng.integers(0, 2, 150)
    order = np.argsort(p)
    expected = np.mean(np.abs((p - y)[order].reshape(15, 10).mean(1)))
    assert ece(p, y) == pytest.approx(expected)


@settings(deadline=None)  # the cores are shared
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 7))
def test_bins_are_ordered_and_in_range(values, bins):
    values = np.array(values)
    found = equal_mass(values, bins)
    assert found.min() == 0 and found.max() < bins
    assert (np.diff(found[np.argsort(values, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_nan_with_its_reason(label):
    logits, _ = drawn(5, 20)
    same = np.full(20, label)
    found = utility(logits, same)
    assert math.isnan(found["auc"]) and found["missing"] == {"auc": "all labels are the same"}
    assert all(math.isfinite(found[name]) for name in ("acc", "log_loss", "ece"))


def test_an_empty_set_gives_nan_with_its_reason():
    found = utility(np.zeros((0, 2)), np.zeros(0))
    assert math.isnan(found["log_loss"]) and found["missing"]["ece"] == "no examples"


@pytest.mark.parametrize(
    ("logits", "label", "says"),
    [
        ([[0.0, np.nan]], [1], "not finite"),
        ([[0.0, np.inf]], [1], "not finite"),
        ([[0.0, 1.0, 2.0]], [1], "3 columns"),
        ([[0.0, 1.0]], [1, 0], "2 labels for 1"),
        ([[0.0, 1.0]], [2], "other than 0 and 1"),
        ([[0.0, 1.0]], [np.nan], "not finite"),
        ([], [1], "at least 1"),
        (0.0, [1], "0 axes"),
    ],
)
def test_bad_input_is_named(logits, label, says):
    with pytest.raises(ConfigError, match=says):
        utility(np.array(logits), np.array(label))


def test_losses_neither_overflow_nor_lose_digits():
    assert nll(np.array([1e4, -1e4, 40.0]), np.array([1, 1, 1])) == pytest.approx(
        [0, 1e4, math.exp(-40)], rel=1e-12
    )


def test_the_interval_of_ece_holds_its_value():
    """The mean of |.| over draws lies above the value: percentiles alone left it out in a third of sets."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(100), 8)
    for seed in range(25):
        z = rng.normal(0, 1, len(user))
        label = (rng.random(len(user)) < 1 / (1 + np.exp(-z))).astype(int)
        logits = np.stack([np.zeros_like(z), z], 1)
        low, high = _interval("ece", logits, label, user, 200, seed)
        assert low <= utility(logits, label)["ece"] <= high


@pytest.mark.slow
def test_the_error_of_a_rise_in_calibration_is_that_of_fresh_samples():
    """Differences of many samples scatter as the bootstrap of one says: both models are drawn together."""
    rng = np.random.default_rng(0)

    def sample():
        z = rng.normal(0.3, 1.2, 1500)
        return z, (rng.random(1500) < expit(z)).astype(int)

    found = [ece_rise(0.8 * z, 1.5 * z, y, draws=200) for z, y in (sample() for _ in range(60))]
    rises = np.array([f["rise"] for f in found])
    assert np.mean([f["se"] for f in found]) == pytest.approx(rises.std(ddof=1), rel=0.35)
    assert rises.mean() > 0.01
    z, y = sample()
    alone = ece_draws(expit(z), y, draws=200).std()
    assert ece_rise(z, 1.02 * z, y, draws=200)["se"] < 0.3 * alone  # what both share falls out
    assert found[0]["rise"] != 0 and ece_rise(z, z, y) == {"rise": 0.0, "se": 0.0}


def test_a_rise_over_a_calibrated_model_shows_too_small_by_as_much_as_is_said():
    """Chance adds to the error of a calibrated model more than to that of another (docs/metrics.md)."""
    rng = np.random.default_rng(0)

    def seen(n, before, after, runs):
        found = []
        for _ in range(runs):
            z = rng.normal(size=n)
            y = rng.random(n) < expit(z)
            found.append((ece(expit(before * z), y), ece(expit(after * z), y)))
        return np.mean(found, 0)

    well, badly = seen(200_000, 1, 1.6, 3)
    assert well < 0.005 and badly == pytest.approx(0.069, abs=0.002)
    for n, rise in ((300, 0.021), (1000, 0.035), (2700, 0.046)):
        calibrated, other = seen(n, 1, 1.6, 100)
        assert calibrated == pytest.approx(np.sqrt(15 / n) / 3, rel=0.15)
        assert other - calibrated == pytest.approx(rise, abs=0.006)
    off, farther = seen(1000, 2, 2.6, 100)
    assert off == pytest.approx(0.103, abs=0.015) and farther - off == pytest.approx(0.038, abs=0.006)


def test_users_whose_rows_err_alike_widen_the_error_of_a_rise():
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(60), 25)
    z = rng.normal(0, 1, 1500)
    y = (rng.random(1500) < expit(z)).astype(int)
    after = z + rng.normal(0.5, 1.5, 60)[user]
    rows, users = (ece_rise(z, after, y, groups=g)["se"] for g in (None, user))
    assert users > 1.3 * rows
