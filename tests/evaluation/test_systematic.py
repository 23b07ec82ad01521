"""The systematic error: chance of trainings out of it, what a method gets wrong in it."""

import numpy as np
import pytest
from scipy.special import expit

from curerec.errors import ConfigError
from curerec.evaluation.divergence import jsd
from curerec.evaluation.systematic import systematic_error

N = 400


def trainings(n, mean, spread, rng):
    """P(yes) of models whose log odds scatter around the same means, [n, N]."""
    return expit(mean + spread * rng.standard_normal((n, N)))


@pytest.mark.parametrize(("models", "retrains"), [(2, 2), (3, 2), (2, 3), (3, 3), (5, 4)])
def test_it_is_the_mean_over_all_pairs_of_different_models(models, retrains):
    rng = np.random.default_rng(models * 10 + retrains)
    p, q = rng.random((models, 7)), rng.random((retrains, 7))
    by_hand = [
        (p[k] - q[j]) * (p[m] - q[i])
        for k in range(models)
        for m in range(models)
        for j in range(retrains)
        for i in range(retrains)
        if k != m and j != i
    ]
    assert systematic_error(p, q) == pytest.approx(np.mean(by_hand), abs=1e-11)


def test_chance_alone_is_none_of_it_and_a_distance_has_it():
    """Models that a retrain's law made: 0 in the mean, where every pair of them lies apart."""
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(N)
    found, apart = [], []
    for _ in range(200):
        new, retrain = trainings(3, mean, 0.5, rng), trainings(3, mean, 0.5, rng)
        found.append(systematic_error(new, retrain))
        apart.append(jsd(new[0], retrain[0]))
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5
    assert np.min(found) < 0 < np.max(found)
    assert np.min(apart) > 0.004


@pytest.mark.parametrize("spread", [0.0, 0.3, 0.9])
def test_a_planted_error_is_found_whatever_single_models_scatter_by(spread):
    rng = np.random.default_rng(1)
    p, q = 0.35 + 0.3 * rng.random(N), 0.35 + 0.3 * rng.random(N)
    true = float(np.mean((p - q) ** 2))

    def around(mean):
        return mean + spread * 0.3 * (rng.random((3, N)) - 0.5)  # the mean stays where it is

    found = [systematic_error(around(p), around(q)) for _ in range(300)]
    assert np.mean(found) == pytest.approx(true, abs=max(3 * np.std(found) / len(found) ** 0.5, 1e-11))


def test_a_model_that_scatters_less_is_not_nearer_for_it():
    """Where a residual falls: half the chance, the same error in the mean."""
    rng = np.random.default_rng(2)
    mean = rng.standard_normal(N)
    wrong = mean + 0.5
    near, far = [], []
    for _ in range(200):
        retrain = trainings(3, mean, 0.6, rng)
        near.append(systematic_error(trainings(3, wrong, 0.05, rng), retrain))
        far.append(systematic_error(trainings(3, wrong, 0.6, rng), retrain))
    assert np.mean(near) > np.mean(far) * 0.9


@pytest.mark.parametrize("which", ["new", "retrain"])
@pytest.mark.parametrize("shape", [(1, N), (N,)])
def test_one_training_is_refused(which, shape):
    sides = {"new": np.full((2, N), 0.5), "retrain": np.full((2, N), 0.5), which: np.full(shape, 0.5)}
    with pytest.raises(ConfigError, match="at least 2 trainings"):
        systematic_error(**sides)


def test_other_examples_are_refused():
    with pytest.raises(ConfigError, match="do not pair"):
        systematic_error(np.full((2, N), 0.5), np.full((2, N + 1), 0.5))


def test_answers_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="finite"):
        systematic_error(np.full((2, N), np.nan), np.full((2, N), 0.5))
