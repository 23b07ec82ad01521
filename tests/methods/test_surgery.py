"""Each rule on the gradient pair against another way to compute it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import spearmanr

from curerec.methods.cagrad.method import Cagrad, dual
from curerec.methods.cau.method import curriculum, gram_of, min_norm
from curerec.methods.gru.method import Gru
from curerec.methods.ngdiff.method import difference, newton_rate
from curerec.methods.pcgrad.method import Pcgrad
from curerec.methods.rules import times
from made_cases import every_pair
from made_models import made_model

SHAPES = {"a": (3, 4), "b": (5,)}
SEEDS = range(12)


def pair(seed, *, conflict=None, scale=1.0):
    """Two random gradients and the same as flat vectors."""
    rng = np.random.default_rng(seed)
    while True:
        f, r = (
            {n: torch.from_numpy(rng.normal(size=s) * k) for n, s in SHAPES.items()} for k in (1.0, scale)
        )
        dot = float(flat(f) @ flat(r))
        if conflict is None or conflict == (dot < 0):
            return f, r


def flat(g):
    return torch.cat([x.reshape(-1) for x in g.values()]).numpy()


def made(kind, weight=1.0):
    return kind(made_model(40, layers=1), weight)


def on_device(*values):
    return [torch.tensor(float(v), dtype=torch.float64) for v in values]


def weights(gram, floor=0.0):
    return min_norm(torch.from_numpy(gram), floor).numpy()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weight", [1.0, 7.0])
def test_pcgrad_projects_each_on_the_normal_plane_of_the_other(seed, weight):
    f, r = pair(seed, conflict=True)
    got, seen = made(Pcgrad, weight).combine(f, r)
    x, y = flat(f), weight * flat(r)
    want = (x - x @ y / (y @ y) * y) + (y - x @ y / (x @ x) * x)
    np.testing.assert_allclose(flat(got), want, atol=1e-12)
    assert bool(seen["projected"][0])
    assert flat(got) @ x >= -1e-12 and flat(got) @ y >= -1e-12
    f, r = pair(seed, conflict=False)
    got, seen = made(Pcgrad, weight).combine(f, r)
    np.testing.assert_allclose(flat(got), flat(f) + weight * flat(r))
    assert not bool(seen["projected"][0])


@pytest.mark.parametrize("rule", [Pcgrad, Cagrad, Gru])
@pytest.mark.parametrize("seed", range(4))
def test_with_factors_the_rule_is_that_of_the_scaled_pair(rule, seed):
    f, r = pair(seed, conflict=True)
    rng = np.random.default_rng(seed)
    scale = {n: torch.from_numpy(10 ** rng.uniform(-1, 1, s)) for n, s in SHAPES.items()}
    got, seen = made(rule, 3.0).combine(f, r, scale)
    want, as_if = made(rule, 3.0).combine(times(f, scale), times(r, scale))
    np.testing.assert_allclose(flat(times(got, scale)), flat(want), rtol=1e-9)
    torch.testing.assert_close(seen, as_if)


@pytest.mark.parametrize("rule", [Pcgrad, Cagrad, Gru])
def test_a_gradient_of_zero_leaves_numbers(rule):
    f, r = pair(0)
    zero = {n: torch.zeros_like(g) for n, g in f.items()}
    for one, two in ((zero, r), (f, zero), (zero, zero)):
        got, _ = made(rule).combine(one, two)
        assert np.isfinite(flat(got)).all()


@pytest.mark.slow_but("0.[15]-*", "0.9-30.0-[0-4]", "0.9-1*", "0.9-0*")
@every_pair(c=[0.1, 0.5, 0.9], scale=[0.05, 1.0, 30.0], seed=SEEDS)
def test_cagrad_solves_its_dual_and_its_primal(seed, scale, c):
    f, r = pair(seed, scale=scale)
    x, y = flat(f), flat(r)
    g0 = (x + y) / 2

    def objective(w):
        mixed = w * x + (1 - w) * y
        return mixed @ g0 + c * np.linalg.norm(g0) * np.linalg.norm(mixed)

    best = float(dual(*on_device(x @ x, x @ y, y @ y), c))
    grid = np.linspace(0, 1, 2001)
    assert 0 <= best <= 1
    assert objective(best) <= min(objective(w) for w in grid) + 1e-9 * abs(objective(best))
    rule = made(Cagrad)
    rule.c = c
    d = flat(rule.combine(f, r)[0])
    # Primal: the largest least improvement inside the ball, by a general solver that knows no dual.
    radius = c * np.linalg.norm(g0)
    found = minimize(
        lambda z: -z[-1],
        np.r_[g0, min(x @ g0, y @ g0)],
        constraints=[
            {"type": "ineq", "fun": lambda z: x @ z[:-1] - z[-1]},
            {"type": "ineq", "fun": lambda z: y @ z[:-1] - z[-1]},
            {"type": "ineq", "fun": lambda z: radius**2 - (z[:-1] - g0) @ (z[:-1] - g0)},
        ],
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-12},
    )
    least = min(x @ d, y @ d)
    assert np.linalg.norm(d - g0) <= radius * (1 + 1e-6)
    assert least >= -found.fun - 1e-5 * max(1, abs(found.fun))


def test_cagrad_of_equal_gradients_only_stretches():
    f, _ = pair(3)
    got, _ = made(Cagrad).combine(f, f)
    np.testing.assert_allclose(flat(got), 1.5 * flat(f))


def test_gru_rectifies_by_the_running_average():
    rule = made(Gru, 5.0)
    mean = np.zeros(17)
    conflicts = 0
    for seed in SEEDS:
        f, r = pair(seed)
        got, seen = rule.combine(f, r)
        mean = 0.8 * flat(r) + 0.2 * mean
        x = flat(f)
        want = x - min(0.0, x @ mean) / (mean @ mean) * mean
        np.testing.assert_allclose(flat(got), want, atol=1e-12)
        assert flat(got) @ mean >= -1e-12
        conflicts += bool(seen["projected"][0])
    assert 0 < conflicts < len(SEEDS)


def test_gru_may_also_descend_on_the_retain_side():
    f, r = pair(1, conflict=False)
    rule = made(Gru, 5.0)
    rule.descend_retain = True
    np.testing.assert_allclose(flat(rule.combine(f, r)[0]), flat(f) + 5 * flat(r))


def test_ngdiff_is_a_difference_of_whole_unit_vectors():
    f, r = pair(2, scale=100.0)
    got = difference(list(r.values()), list(f.values()))
    x, y = flat(f), flat(r)
    want = y / np.linalg.norm(y) - x / np.linalg.norm(x)
    np.testing.assert_allclose(np.concatenate([g.numpy().ravel() for g in got]), want, atol=1e-12)


def test_the_automatic_rate_is_newton_s_on_a_parabola():
    rng = np.random.default_rng(0)
    hessian = rng.normal(size=(4, 4))
    hessian = hessian @ hessian.T + np.eye(4)
    theta, d = rng.normal(size=4), rng.normal(size=4)
    if (hessian @ theta) @ d < 0:
        d = -d

    def loss(x):
        return 0.5 * x @ hessian @ x

    for rate in (0.01, 0.3):
        got = newton_rate(*on_device(loss(theta - rate * d), loss(theta), loss(theta + rate * d), rate))
        assert float(got) == pytest.approx((hessian @ theta) @ d / (d @ hessian @ d))
    assert newton_rate(*on_device(1.0, 1.5, 1.0, 0.1)) == 0.1  # bends down
    assert newton_rate(*on_device(2.0, 1.0, 1.0, 0.1)) == 0.1  # rises ahead


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("k", [2, 3])
def test_min_norm_against_all_mixtures(seed, floor, k):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(k, 3 if seed % 2 else 6)) * 10.0 ** rng.integers(-3, 3, (k, 1))
    gram = vectors @ vectors.T
    weight = weights(gram, floor)
    assert weight.sum() == pytest.approx(1) and (weight >= floor - 1e-9).all()
    free = rng.dirichlet(np.full(k, 0.3), 20_000)
    free = np.concatenate([free, np.eye(k)])
    mixtures = floor + (1 - k * floor) * free
    lengths = np.einsum("ni,ij,nj->n", mixtures, gram, mixtures)
    assert weight @ gram @ weight <= lengths.min() * (1 + 1e-9) + 1e-12


def test_min_norm_of_two_is_the_known_formula():
    x, y = np.array([1.0, 2.0, 0.5]), np.array([-2.0, 1.0, 3.0])
    weight = weights(np.array([[x @ x, x @ y], [x @ y, y @ y]]))
    assert weight[0] == pytest.approx(np.clip((y - x) @ y / ((x - y) @ (x - y)), 0, 1))


def test_min_norm_is_a_direction_of_common_descent():
    for seed in SEEDS:
        vectors = np.random.default_rng(seed).normal(size=(3, 8))
        d = weights(vectors @ vectors.T) @ vectors
        assert (vectors @ d >= d @ d - 1e-9).all()


def test_a_zero_gradient_takes_all_the_free_weight():
    gram = np.diag([4.0, 9.0, 0.0])
    np.testing.assert_allclose(weights(gram), [0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(weights(gram, 0.1), [0.1, 0.1, 0.8], atol=1e-9)


def test_inner_products_of_three_vectors_in_parts():
    sides = [list(pair(seed)[0].values()) for seed in range(3)]
    whole = np.stack([np.concatenate([x.numpy().ravel() for x in side]) for side in sides])
    np.testing.assert_allclose(gram_of(sides).numpy(), whole @ whole.T, rtol=1e-12)


def test_curriculum_sorts_or_draws():
    difficulty = np.random.default_rng(1).normal(size=200) * 7 + 3
    hard = curriculum(difficulty, "hard", 1.0, np.random.default_rng(0))
    assert (np.diff(difficulty[hard]) >= 0).all()
    means = []
    for temperature in (0.01, 1.0, 1e6):
        places = np.zeros(200)
        for seed in range(60):
            soft = curriculum(difficulty, "soft", temperature, np.random.default_rng(seed))
            assert sorted(soft) == list(range(200))
            places[soft] += np.arange(200)
        means.append(spearmanr(places, difficulty).statistic)
    assert means[0] > 0.999 and means[0] > means[1] > 0.5 and abs(means[2]) < 0.3


def test_soft_order_draws_first_by_the_softmax():
    difficulty = np.array([0.0, 1.0, 2.0])
    first = [curriculum(difficulty, "soft", 0.5, np.random.default_rng(s))[0] for s in range(4000)]
    scaled = -difficulty / difficulty.std() / 0.5
    want = np.exp(scaled) / np.exp(scaled).sum()
    np.testing.assert_allclose(np.bincount(first, minlength=3) / 4000, want, atol=0.03)
