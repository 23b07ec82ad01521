"""The utility guard: what it measures, and that noise does not set it off."""

from __future__ import annotations

import types

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from curerec.delong import auc_drop
from curerec.methods.stopping import Stopping, Watch


def scored(n, *, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    before = label + rng.normal(size=n)
    return label, before, before + noise * rng.normal(size=n)


@pytest.mark.parametrize("seed", range(5))
def test_the_drop_is_the_difference_of_two_areas(seed):
    label, before, after = scored(200, seed=seed, noise=1.0)
    after = after.round(1)  # ties
    drop, _ = auc_drop(label, before, after)
    assert drop == pytest.approx(roc_auc_score(label, before) - roc_auc_score(label, after), abs=1e-12)


@pytest.mark.slow
def test_its_error_is_that_of_a_paired_bootstrap():
    label, before, after = scored(600, noise=0.5)
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(800):
        k = rng.integers(0, len(label), len(label))
        draws.append(roc_auc_score(label[k], before[k]) - roc_auc_score(label[k], after[k]))
    assert auc_drop(label, before, after)[1] == pytest.approx(np.std(draws), rel=0.1)


def harmed(label, before, after):
    drop, error = auc_drop(label, before, after)
    seen = {"auc_drop": drop, "auc_drop_se": error}
    return Watch.harmed(types.SimpleNamespace(config=Stopping()), seen)


def test_noise_alone_rarely_stops_an_update_and_harm_does():
    """A model as good as the original, its scores a little scattered, and one that lost its skill on some."""
    false = sum(harmed(*scored(600, seed=s, noise=0.02)) for s in range(200))
    assert false <= 10
    for seed in range(20):
        label, before, _ = scored(600, seed=seed)
        assert harmed(label, before, np.where(np.arange(600) % 5 == 0, -before, before))
