"""Floor, ceiling, residual."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curerec.errors import ConfigError
from curerec.evaluation.divergence import jsd, l2
from curerec.evaluation.residual import Reference


def made(seeds=3, n=200, noise=0.02, shift=0.2):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.3, 0.7, n)
    retrain = np.clip(truth + rng.normal(0, noise, (seeds, n)), 0, 1)
    return Reference(retrain, np.clip(truth + shift, 0, 1)), truth, rng


def test_floor_and_ceiling_are_means_over_pairs():
    ref, _, _ = made()
    a, b, c = ref.retrain
    assert ref.floor == pytest.approx((jsd(a, b) + jsd(a, c) + jsd(b, c)) / 3)
    assert ref.ceiling == pytest.approx(
        (jsd(ref.original, a) + jsd(ref.original, b) + jsd(ref.original, c)) / 3
    )
    assert ref.ratio == pytest.approx(ref.ceiling / ref.floor)


def test_the_ends_of_the_scale():
    ref, truth, rng = made()
    assert ref.residual(ref.distance(ref.original)) == pytest.approx(1)
    another = np.clip(truth + rng.normal(0, 0.02, truth.shape), 0, 1)
    assert ref.residual(ref.distance(another)) == pytest.approx(0, abs=0.05)
    assert ref.residual(ref.distance(np.clip(truth - 0.3, 0, 1))) > 1


def test_every_seed_meets_every_seed():
    ref, _, _ = made()
    both = np.stack([ref.retrain[0], ref.original])
    assert ref.distance(both) == pytest.approx((ref.distance(both[0]) + ref.distance(both[1])) / 2)


def test_averaging_takes_the_seed_noise_out():
    ref, truth, rng = made(seeds=6, noise=0.1)
    mine = np.clip(truth + rng.normal(0, 0.1, (6, len(truth))), 0, 1)
    assert ref.jsd_mean(mine) < ref.floor / 3
    assert ref.jsd_mean(mine) == pytest.approx(jsd(mine.mean(0), ref.retrain.mean(0)))


def test_nothing_to_forget_is_not_rankable():
    assert made(shift=0.2)[0].rankable
    ref, _, _ = made(noise=0.1, shift=0.0)
    assert not ref.rankable


def test_scales_without_a_length_give_nan():
    same = np.full((2, 4), 0.5)
    still = Reference(same, same[0])
    assert math.isnan(still.ratio) and math.isnan(still.residual(0.1)) and not still.rankable
    moved = Reference(same, np.full(4, 0.7))
    assert moved.ratio == math.inf and moved.rankable
    apart = Reference(np.array([[0.2, 0.8], [0.8, 0.2]]), np.array([0.5, 0.5]))
    assert apart.ceiling < apart.floor and math.isnan(apart.residual(0.1))


def test_another_measure_takes_the_same_scale():
    ref, _, _ = made()
    other = Reference(ref.retrain, ref.original, measure=l2)
    assert other.residual(other.ceiling) == pytest.approx(1)
    assert other.floor != ref.floor


@pytest.mark.parametrize(
    ("retrain", "original", "says"),
    [
        (np.full((1, 3), 0.5), np.full(3, 0.5), "1 retrained model"),
        (np.full(3, 0.5), np.full(3, 0.5), "1 retrained model"),
        (np.full((2, 3), 0.5), np.full(4, 0.5), "do not pair"),
        (np.full((2, 3), np.nan), np.full(3, 0.5), "no probabilities"),
        (np.zeros((2, 0)), np.zeros(0), "empty"),
    ],
)
def test_bad_references_are_refused(retrain, original, says):
    with pytest.raises(ConfigError, match=says):
        Reference(retrain, original)


def test_bad_predictions_are_refused():
    ref, _, _ = made(seeds=2)
    with pytest.raises(ConfigError, match="does not fit"):
        ref.distance(np.full(7, 0.5))
    with pytest.raises(ConfigError, match="3 of each"):
        ref.jsd_mean(np.full((3, 200), 0.5))
