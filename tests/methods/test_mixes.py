"""Weights of whole gradients that stay on the device against the same worked out on the host.

The plain sum, PCGrad and GRU have the same bits. CAGrad, cosines and NGDiff agree within rounding: torch's
root of a number may be a bit off, and a sum with a factor from the device rounds as its kernel does. CAU's
weights were solved by least squares.
"""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch

from curerec.methods import METHODS
from curerec.methods.cagrad.method import Cagrad, dual
from curerec.methods.cau.method import min_norm
from curerec.methods.gru.method import Gru
from curerec.methods.ngdiff import method as ngdiff
from curerec.methods.pcgrad.method import Pcgrad
from curerec.methods.surgery import WholeVector, inner
from made_models import made_model
from made_tasks import made_task

SEEDS = range(40)


def on_device(*values):
    return [torch.tensor(float(v), dtype=torch.float64) for v in values]


def pairs():
    """Gradients in float32 by parameter name: at random over many sizes, equal, parallel, opposed, zero."""
    model = made_model(40, layers=1)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        f, r, shared = ({n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(3))
        size, alike = 10.0 ** (seed % 9 - 4), (seed % 5 - 2) / 2
        yield f, {n: size * (g + alike * f[n] + 0.1 * shared[n]) for n, g in r.items()}
    zero = {n: torch.zeros_like(g) for n, g in f.items()}
    for times in (1.0, 1 + 2**-20, 3.0, 1e-6, -1.0, -(1 + 2**-20), -0.25, -1e5):
        yield f, {n: times * g for n, g in f.items()}
    yield from ((f, zero), (zero, f), (zero, zero))


def old_sum(ff, fr, rr):
    return 1.0, 1.0


def old_pcgrad(ff, fr, rr):
    if fr >= 0 or ff == 0 or rr == 0:
        return 1.0, 1.0
    return 1 - fr / ff, 1 - fr / rr


def old_dual(ff, fr, rr, c):
    uu = max(ff - 2 * fr + rr, 0.0)
    g0 = math.sqrt(max(ff + 2 * fr + rr, 0.0)) / 2
    slope = (ff - rr) / 2
    if uu == 0:
        return 0.5
    reach = c * g0 * math.sqrt(uu)
    if abs(slope) >= reach:
        return 0.5 if slope == 0 else float(slope < 0)
    x0 = (rr - fr) / uu
    m = math.sqrt(max(ff * rr - fr * fr, 0.0) / uu)
    ratio = -slope / reach
    return min(1.0, max(0.0, x0 + ratio * m / math.sqrt(1 - ratio**2) / math.sqrt(uu)))


def old_cagrad(ff, fr, rr, c=0.5):
    x = old_dual(ff, fr, rr, c)
    norm = math.sqrt(max(x * x * ff + 2 * x * (1 - x) * fr + (1 - x) ** 2 * rr, 0.0))
    g0 = math.sqrt(max(ff + 2 * fr + rr, 0.0)) / 2
    push = c * g0 / norm if norm > 0 else 0.0
    return 0.5 + push * x, 0.5 + push * (1 - x)


@pytest.mark.parametrize(
    ("kind", "old", "rounding"),
    [(WholeVector, old_sum, 0.0), (Pcgrad, old_pcgrad, 0.0), (Cagrad, old_cagrad, 2e-7)],
)
@pytest.mark.parametrize("weight", [1.0, 9.0])
def test_a_mix_is_that_with_weights_from_the_host(kind, old, rounding, weight):
    rule, cases = kind(made_model(40, layers=1), weight), 0
    for f, r in pairs():
        scaled = {n: weight * g for n, g in r.items()}
        ff, fr, rr = (float(inner(a, b)) for a, b in ((f, f), (f, scaled), (scaled, scaled)))
        a, b = old(ff, fr, rr)
        got, seen = rule.combine(f, r)
        for n in f:
            one, two = a * f[n], b * scaled[n]
            assert ((got[n] - (one + two)).abs() <= rounding * (one.abs() + two.abs())).all(), n
        norm = np.sqrt(ff) * np.sqrt(rr)
        want = fr / norm if norm > 0 else float("nan")
        np.testing.assert_allclose(seen["cos"].tolist(), [want], rtol=1e-14)
        assert seen["projected"].tolist() == [fr < 0]
        cases += fr < 0
    assert cases > 5


def test_gru_has_the_bits_of_a_pull_from_the_host():
    rule, mean, pulled = Gru(made_model(40, layers=1), 9.0), None, 0
    for f, r in pairs():
        mean = {n: torch.lerp(torch.zeros_like(g) if mean is None else mean[n], g, 0.8) for n, g in r.items()}
        fr, rr = float(inner(f, mean)), float(inner(mean, mean))
        pull = -fr / rr if fr < 0 < rr else 0.0
        got, _ = rule.combine(f, r)
        assert all(torch.equal(got[n], f[n] + pull * mean[n]) for n in f)
        pulled += pull > 0
    assert pulled > 5


@pytest.mark.slow_but("0.5", "0.0")
@pytest.mark.parametrize("c", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_cagrad_s_dual_is_that_of_the_host_over_many_sizes(c):
    """Inner products that no vectors have, by a little, come of rounding."""
    rng, cases = np.random.default_rng(0), []
    for _ in range(3000):
        ff, rr = 10.0 ** rng.uniform(-10, 10, 2)
        rr = ff * rng.choice([1.0, 1 + 1e-15, 1 - 1e-9, 1.3]) if rng.random() < 0.3 else rr
        cos = rng.choice([-1.0, 1.0, rng.uniform(-1, 1), 1 - 1e-12, -1 + 1e-15, 0.0])
        cases.append((ff, cos * math.sqrt(ff * rr) * (1 + rng.choice([0.0, 1e-16, -3e-16])), rr))
    cases += [(0.0, 0.0, 0.0), (0.0, 0.0, 2.0), (2.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, -1.0, 1.0)]
    for products in cases:
        got, want = float(dual(*on_device(*products), c)), old_dual(*products, c)
        assert got == pytest.approx(want, abs=1e-12), products
    assert 0 <= dual(*on_device(math.inf, 1.0, 1.0), c) <= 1


@pytest.mark.parametrize("sides", [(0.7, 0.6, 0.8), (0.6, 0.6, 0.6), (0.6, 0.7, 0.6), (0.8, 0.7, 0.6)])
def test_the_automatic_rate_has_the_bits_of_the_host_s(sides):
    (ahead, here, behind), rate = sides, 0.013
    bend, slope = behind - 2 * here + ahead, behind - ahead
    want = rate / 2 * slope / bend if bend > 0 and slope > 0 else rate
    assert float(ngdiff.newton_rate(*on_device(ahead, here, behind, rate))) == want


@pytest.mark.slow
def test_ngdiff_ends_with_the_weights_of_rates_and_norms_from_the_host(monkeypatch):
    config = ngdiff.NgdiffConfig(max_steps=5, check_every=5, check_size=20, rate_every=2, max_auc_drop=1)
    found = METHODS["ngdiff"][0](made_task("full"), config)

    def difference(retain, forget):
        norms = [
            max(float(sum(g.double().square().sum() for g in x).sqrt()), 1e-12) for x in (retain, forget)
        ]
        return [r / norms[0] - f / norms[1] for r, f in zip(retain, forget, strict=True)]

    @torch.no_grad()
    def moved(descent, batch, direction, rate):
        before = [p.detach().clone() for p in descent.params]
        for p, d in zip(descent.params, direction, strict=True):
            p.add_(d, alpha=float(rate))
        loss = descent.loss(batch).double()
        for p, b in zip(descent.params, before, strict=True):
            p.copy_(b)
        return loss

    monkeypatch.setattr(ngdiff, "difference", difference)
    monkeypatch.setattr(ngdiff, "_moved", moved)
    want = METHODS["ngdiff"][0](made_task("full"), config)
    rates = [outcome.trace[-1]["rate"] for outcome in (found, want)]
    assert isinstance(rates[0], float) and rates[0] != config.lr
    # Of losses that lie so near to each other a rounding is seen in the rate.
    assert rates[0] == pytest.approx(rates[1], rel=1e-3)
    for (name, p), q in zip(found.model.named_parameters(), want.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def old_min_norm(gram, floor=0.0):
    k = len(gram)
    shift = np.full((k, k), floor) + (1 - k * floor) * np.eye(k)
    moved = shift @ gram @ shift.T
    best, least = np.full(k, 1 / k), np.inf
    for size in range(1, k + 1):
        for face in combinations(range(k), size):
            inside = moved[np.ix_(face, face)]
            bordered = np.block([[2 * inside, np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            bordered[:size, :size] /= max(float(np.trace(inside)), 1e-300)
            v = np.linalg.lstsq(bordered, np.r_[np.zeros(size), 1.0], rcond=None)[0][:size]
            if (v >= -1e-12).all():
                v = np.clip(v, 0, None) / np.clip(v, 0, None).sum()
                length = float(v @ inside @ v)
                if length < least:
                    least, best = length, np.zeros(k)
                    best[list(face)] = v
    return shift.T @ best


@pytest.mark.slow_but("2-*")
@pytest.mark.parametrize(("k", "floor"), product([2, 3], [0.0, 0.1]))
def test_min_norm_agrees_with_least_squares(k, floor):
    """At random the weights, of sizes apart by up to six decades; of what has many solutions the length."""
    rng = np.random.default_rng(k)
    inner_points = 0
    for _ in range(400):
        vectors = rng.normal(size=(k, 8)) + 2 * rng.random() * rng.normal(size=8)
        gram = vectors @ vectors.T
        want = old_min_norm(gram, floor)
        np.testing.assert_allclose(min_norm(torch.from_numpy(gram), floor).numpy(), want, atol=1e-9)
        inner_points += (want > floor + 1e-6).all()
    assert inner_points > 20
    a, b, c = rng.normal(size=(3, 8))
    made = [
        [a, b, c], [a, a, a], [a, 2 * a, 3 * a], [a, -a, b], [a, -2 * a, 3 * a], [a, b, a + b],
        [a, b, -a - b], [a, b, (a + b) / 2], [0 * a, b, c], [0 * a, 0 * b, c], [0 * a, 0 * b, 0 * c],
        [a, a + 1e-7 * b, a - 1e-7 * c], [a, -a * (1 + 1e-9), 1e-6 * b], [a, a, -a],
    ]  # fmt: skip
    made += [
        [size * v for size, v in zip(10.0 ** rng.uniform(-3, 3, 3), made[0], strict=True)] for _ in range(99)
    ]
    for some in made:
        vectors = np.stack(some[:k])
        gram = vectors @ vectors.T
        got, want = min_norm(torch.from_numpy(gram), floor).numpy(), old_min_norm(gram, floor)
        assert got.sum() == pytest.approx(1, abs=1e-12) and (got >= floor - 1e-12).all()
        lengths = [w @ gram @ w for w in (got, want)]
        assert lengths[0] <= lengths[1] * (1 + 1e-9) + 1e-13 * gram.max()
        one, two = (w @ vectors for w in (got, want))
        np.testing.assert_allclose(one, two, atol=1e-6 * max(1e-3, np.linalg.norm(vectors, axis=1).max()))
