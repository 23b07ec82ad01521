"""Divergences: parity with scipy, bounds, ends of the range."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from curerec.errors import ConfigError
from curerec.evaluation.divergence import EPS, jeffreys_half, jsd, jsd_each, jsd_full, l2

unit = st.floats(0, 1)
inner = st.floats(0.05, 0.95)


def both(p):
    return np.stack([1 - p, p], -1)


def test_equals_scipy():
    p, q = np.random.default_rng(0).uniform(0.001, 0.999, (2, 100))
    assert jsd_each(p, q) == pytest.approx(jensenshannon(both(p), both(q), axis=-1) ** 2, abs=1e-12)
    kl = (entropy(both(p), both(q), axis=-1) + entropy(both(q), both(p), axis=-1)) / 2
    assert jeffreys_half(p, q) == pytest.approx(kl.mean(), rel=1e-9)
    assert l2(p, q) == pytest.approx(np.linalg.norm(both(p) - both(q), axis=-1).mean(), rel=1e-12)


@settings(deadline=None)  # the cores are shared
@given(unit, unit)
def test_bounds_symmetry_and_identity(p, q):
    a, b = np.array([p]), np.array([q])
    assert 0 <= jsd(a, b) <= math.log(2)
    assert jsd(a, b) == pytest.approx(jsd(b, a), abs=1e-15)
    assert jsd(a, a) == 0 and jeffreys_half(a, a) == 0 and l2(a, a) == 0
    assert jeffreys_half(a, b) >= 0 and math.isfinite(jeffreys_half(a, b))
    # JSD <= J/4 holds for the whole Jeffreys divergence (Lin 1991), so it is below half of ours.
    if min(p, q) >= EPS and max(p, q) <= 1 - EPS:
        assert jsd(a, b) <= jeffreys_half(a, b) / 2 + 1e-12


@settings(deadline=None)  # the cores are shared
@given(inner, st.sampled_from([-1e-3, 1e-3]))
def test_half_jeffreys_is_four_times_the_jsd_for_small_gaps(p, gap):
    a, b = np.array([p]), np.array([p + gap])
    assert jeffreys_half(a, b) == pytest.approx(4 * jsd(a, b), rel=2e-3)


def test_by_hand():
    assert jsd(np.array([0.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(math.log(2))
    assert jsd(np.array([1.0]), np.array([0.5])) == pytest.approx(0.75 * math.log(4 / 3), abs=1e-12)
    assert jeffreys_half(np.array([0.0]), np.array([1.0])) == pytest.approx(math.log(1 / EPS), rel=1e-6)
    assert jsd(np.array([1e-300]), np.array([0.0])) >= 0


def test_seeds_pair_by_broadcasting():
    p = np.array([[0.1, 0.2], [0.3, 0.4]])
    assert jsd_each(p, np.array([0.1, 0.2]))[0] == pytest.approx([0, 0])


def test_full_vocabulary_equals_scipy_and_the_two_answer_case():
    rng = np.random.default_rng(1)
    p, q = softmax(rng.normal(0, 4, (2, 30, 50)), -1)
    assert jsd_full(p, q) == pytest.approx((jensenshannon(p, q, axis=-1) ** 2).mean(), abs=1e-12)
    a, b = rng.uniform(0, 1, (2, 20))
    assert jsd_full(both(a), both(b)) == pytest.approx(jsd(a, b), abs=1e-12)
    assert jsd_full(p.astype(np.float16), p.astype(np.float16)) == 0


def test_full_vocabulary_in_chunks(monkeypatch):
    p, q = softmax(np.random.default_rng(2).normal(size=(2, 11, 5)), -1)
    whole = jsd_full(p, q)
    monkeypatch.setattr("curerec.evaluation.divergence._CHUNK", 10)
    assert jsd_full(p, q) == pytest.approx(whole, abs=1e-15)


@pytest.mark.parametrize("measure", [jsd, jeffreys_half, l2])
@pytest.mark.parametrize(
    ("p", "q"), [([], []), ([np.nan], [0.5]), ([1.1], [0.5]), ([0.5], [-0.1]), ([0.5], [0.5, 0.5])]
)
def test_bad_input_is_named(measure, p, q):
    with pytest.raises(ConfigError):
        measure(np.array(p), np.array(q))


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (np.ones((2, 3)), np.ones((2, 3))),
        (np.eye(2), np.eye(3)),
        (np.ones(2), np.ones(2)),
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.array([[2.0, -1.0]]), np.array([[1.0, 0.0]])),
    ],
)
def test_logits_are_not_taken_for_a_vocabulary_of_probabilities(p, q):
    with pytest.raises(ConfigError):
        jsd_full(p, q)
