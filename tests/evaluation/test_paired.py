"""Intervals over users: of means, of low false alarms, and of differences on the same draws."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from curerec.errors import ConfigError
from curerec.evaluation import METRICS
from curerec.evaluation.auc import auc_draws
from curerec.evaluation.bootstrap import interval, mean_interval, weights
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.membership import tpr_at_fpr, tpr_draws
from curerec.evaluation.metric import evaluate
from curerec.evaluation.residual import Scale
from curerec.evaluation.scene import Scene


def test_weights_draw_whole_users():
    user = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    drawn = np.concatenate(list(weights(8, draws=50, seed=0, groups=user)))
    assert drawn.shape == (50, 8) and drawn.sum(1) == pytest.approx(1)
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 3] == drawn[:, 5]).all()
    with pytest.raises(ConfigError, match="at least 5"):  # of two users it would hold in half of the cases
        list(weights(8, draws=5, seed=0, groups=np.arange(8) % 4))
    with pytest.raises(ConfigError, match="at least 2"):
        list(weights(1, draws=5, seed=0))


def test_a_mean_of_dependent_rows_is_covered_by_drawing_users_alone():
    rng = np.random.default_rng(0)
    hits = {"rows": 0, "users": 0}
    for seed in range(120):
        user = np.repeat(np.arange(30), 10)
        each = rng.normal(0, 1, 30)[user] + rng.normal(0, 1, 300)
        for name, groups in (("rows", None), ("users", user)):
            low, high = mean_interval(each, draws=200, seed=seed, groups=groups)
            hits[name] += low <= 0 <= high
    assert hits["rows"] / 120 < 0.75
    assert hits["users"] / 120 > 0.84


@pytest.mark.parametrize(("users", "covered"), [(5, 0.83), (20, 0.91), (60, 0.95)])
def test_few_users_make_too_narrow_an_interval_by_as_much_as_is_said(users, covered):
    """docs/metrics.md has these figures, of skewed numbers such as distances."""
    rng, hits, runs = np.random.default_rng(0), 0, 200
    for seed in range(runs):
        user = np.repeat(np.arange(users), rng.integers(3, 20, users))
        z = 0.5 * rng.normal(size=users)[user] + rng.normal(size=len(user))
        low, high = mean_interval(np.exp(0.7 * z), draws=200, seed=seed, groups=user)
        hits += low <= np.exp(0.49 * 1.25 / 2) <= high
    assert hits / runs == pytest.approx(covered, abs=3 * (covered * (1 - covered) / runs) ** 0.5)


def test_low_false_alarms_of_a_draw_are_what_a_plain_loop_gives():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 30, 60) + 5.0, rng.integers(0, 30, 400) * 1.0
    same = tpr_draws(a, b, 0.05, draws=40, seed=3)
    rng = np.random.default_rng(3)
    index = [rng.integers(0, len(x), (40, len(x))) for x in (a, b)]
    assert same == pytest.approx([tpr_at_fpr(a[i], b[j], 0.05) for i, j in zip(*index, strict=True)])


def test_paired_draws_make_a_narrower_interval_than_two_apart():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.4, 1, 300), rng.normal(0, 1, 300)
    near = (a + rng.normal(0, 0.1, 300), b + rng.normal(0, 0.1, 300))
    first = auc_draws(a, b, seed=0)
    paired, apart = (interval(first - auc_draws(*near, seed=s)) for s in (0, 1))
    assert paired[1] - paired[0] < 0.4 * (apart[1] - apart[0])


def test_the_residual_s_interval_covers_its_truth():
    """Distances of each user scatter, but all three together: the ratio is known far better than they are."""
    rng = np.random.default_rng(4)
    user = np.repeat(np.arange(60), 5)
    size = rng.lognormal(0, 1, 60)[user]
    scale = Scale(0.4 * size + rng.normal(0, 0.01, 300), 0.1 * size, 0.9 * size)
    low, high = scale.interval(draws=300, seed=0, groups=user)
    assert low <= scale.residual() <= high
    assert scale.residual() == pytest.approx(0.375, abs=0.01) and high - low < 0.05


@pytest.mark.parametrize(("rows", "known"), [(1, False), (4, False), (5, True)])
@pytest.mark.parametrize("name", ["membership_auc", "membership_gap", "membership_tpr_at_fpr_01", "privleak"])
def test_a_number_of_two_sets_has_an_interval_of_five_rows_and_more_alone(name, rows, known):
    """Of one deleted example all draws hold the same one: the error shown would be D_c's alone."""
    rng = np.random.default_rng(0)
    sizes = {"forget": rows, "control": 300}
    ground = SimpleNamespace(
        draws=50,
        seed=0,
        split=SimpleNamespace(control=np.zeros(300)),
        user=lambda part: np.zeros(rows, int) if part == "forget" else 1 + np.arange(300) // 10,
        losses=lambda one, part: one.logits[part],
    )
    one, other = (
        Candidate(None, logits={part: rng.exponential(size=n) for part, n in sizes.items()}) for _ in range(2)
    )
    found = evaluate(METRICS[name], Scene(ground, one, None, (other,)))
    assert found.value is not None and found.n == 300 + rows
    assert (found.low is not None, found.high is not None) == (known, known)


@pytest.mark.parametrize(("users", "known"), [(4, False), (5, True)])
def test_an_auc_of_one_set_has_no_interval_of_few_users_on_either_side(users, known):
    """Rows would be drawn in their place: where a user's are alike it holds the truth in .6 of cases."""
    user, rng = np.repeat(np.arange(12), 20), np.random.default_rng(0)
    label = (user >= users) | (np.arange(240) % 2 == 0)
    ground = SimpleNamespace(
        draws=50,
        seed=0,
        logits=lambda one, part: one.logits[part],
        part=lambda name: SimpleNamespace(label=label.astype(np.int8)),
        user=lambda part: user,
        split=SimpleNamespace(test=user),
    )
    one = Scene(ground, Candidate(None, logits={"test": rng.normal(size=240)}))
    found = {name: evaluate(METRICS[name], one) for name in ("test_auc", "test_acc")}
    assert all(value.value is not None for value in found.values())
    assert (found["test_auc"].low is not None, found["test_acc"].low is not None) == (known, True)


@pytest.mark.parametrize(("rows", "covered"), [(1, 0.08), (2, 0.57), (5, 0.86)])
def test_draws_of_so_few_rows_cover_too_little(rows, covered):
    """Why two sets have no interval of fewer than five rows: of models that know nothing, whose AUC is .5."""
    rng, times, hits = np.random.default_rng(0), 200, 0
    for k in range(times):
        drawn = auc_draws(rng.normal(size=rows), rng.normal(size=500), draws=200, seed=k)
        low, high = interval(drawn)
        hits += low <= 0.5 <= high
    assert hits / times == pytest.approx(covered, abs=0.08)
