"""The paired comparison finds a planted difference, and none where there is none as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.bench.significance import Yard, compared, compared_means, holm
from curerec.evaluation.residual import Reference


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def planted(shares, n=300, seeds=(20, 21, 22, 23, 24), salt=0):
    """Yards and answers of methods that keep a share of the original's shift."""
    yards, said = {}, {name: {} for name in shares}
    for s in seeds:
        rng = np.random.default_rng([s, salt])
        truth, shift = rng.normal(size=n), rng.normal(size=n)
        retrain = sigmoid(truth + 0.1 * rng.normal(size=(2, n)))
        yards[s] = Yard.of(sigmoid(truth + shift), retrain)
        for name, share in shares.items():
            said[name][s] = sigmoid(truth + share * shift + 0.1 * rng.normal(size=n))
    return yards, said


def test_the_difference_is_that_of_the_residuals():
    yards, said = planted({"a": 0.3, "b": 0.6})
    found = compared(yards, said["a"], said["b"], draws=400)
    nearer, scales = [], []
    for s, yard in yards.items():
        scale = Reference(yard.retrain, np.zeros(yard.retrain.shape[1]) + 0.5)
        floor, ceiling = yard.floor.mean(), yard.ceiling.mean()
        assert floor == pytest.approx(scale.floor)
        nearer.append(scale.distance(said["a"][s]) - scale.distance(said["b"][s]))
        scales.append(ceiling - floor)
    assert found.difference == pytest.approx(np.mean(nearer) / np.mean(scales))
    assert found.low < found.difference < found.high < 0
    assert found.p < 0.01


def test_damage_everywhere_is_no_excess():
    shares = {"a": 0.3, "b": 0.6}
    yards, said = planted(shares, salt=1)
    everywhere = planted(shares, salt=2)  # on D_c as on D_f
    both = compared(
        yards, said["a"], said["b"], less=(everywhere[0], everywhere[1]["a"], everywhere[1]["b"]), draws=400
    )
    assert both is None  # the original itself lies no farther on D_f: nothing to tell by
    yards_c, said_c = planted({"a": 0.0, "b": 0.4}, salt=2)
    quiet = {s: Yard(y.floor, y.floor, y.retrain) for s, y in yards_c.items()}
    plain = compared(yards, said["a"], said["b"], draws=400)
    less = compared(yards, said["a"], said["b"], less=(quiet, said_c["a"], said_c["b"]), draws=400)
    means = [
        np.mean([y.distance(p[s]).mean() for s, y in ys.items()])
        for ys, p in [(yards, said["a"]), (yards, said["b"]), (quiet, said_c["a"]), (quiet, said_c["b"])]
    ]
    scale = np.mean([y.ceiling.mean() - y.floor.mean() for y in yards.values()])
    assert less.difference == pytest.approx((means[0] - means[1] - means[2] + means[3]) / scale)
    assert plain.difference < less.difference < 0


def means_of(yards, a, b):
    """[ours, theirs, floor, ceiling] of each seed."""
    return [
        np.array([y.distance(a[s]).mean(), y.distance(b[s]).mean(), y.floor.mean(), y.ceiling.mean()])
        for s, y in yards.items()
    ]


@pytest.mark.slow_but("0.05-3", "*6-3")
@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("level", [0.05, 0.05 / 3])
def test_equals_are_told_apart_as_rarely_as_it_says(n_seeds, level):
    """Two methods of one law, whose seeds scatter: a bootstrap's quantiles reject .2 (3 seeds) and .1 (5)."""
    rng, by_examples, by_means, runs = np.random.default_rng(0), 0, 0, 120
    for salt in range(runs):
        yards, said = {}, ({}, {})
        for s in range(n_seeds):
            truth, shift = rng.normal(size=100), rng.normal(size=100)
            yards[s] = Yard.of(sigmoid(truth + shift), sigmoid(truth + 0.1 * rng.normal(size=(2, 100))))
            for one in said:
                share = 0.4 + 0.1 * rng.normal()
                one[s] = sigmoid(truth + share * shift + 0.1 * rng.normal(size=100))
        by_examples += compared(yards, *said, draws=60, seed=salt).p < level
        by_means += compared_means(means_of(yards, *said), least_error=0.0).p < level
    # Three standard errors of the count above what a test of that level rejects.
    most = runs * level + 3 * np.sqrt(runs * level * (1 - level))
    assert by_examples <= most and by_means <= most


def test_seeds_that_agree_by_luck_have_the_error_of_their_examples():
    yards, said = planted({"a": 0.3, "b": 0.6}, seeds=(20,))
    again = {s: yards[20] for s in (20, 21, 22)}
    ours, theirs = ({s: said[name][20] for s in again} for name in "ab")
    assert compared_means(means_of(again, ours, theirs)) is None  # nothing holds the error to anything
    assert compared_means(means_of(again, ours, theirs), least_error=0.0).p == 0
    found = compared(again, ours, theirs, draws=500)
    assert found.high - found.low > 0.01 and found.p > 0


def test_means_alone_say_the_same():
    yards, said = planted({"a": 0.3, "b": 0.6})
    whole = compared(yards, said["a"], said["b"], draws=2000)
    alone = compared_means(means_of(yards, said["a"], said["b"]))
    assert alone.difference == pytest.approx(whole.difference)
    assert alone.seeds == whole.seeds == 5 and alone.p < 0.01
    assert alone.high - alone.low <= whole.high - whole.low < 3 * (alone.high - alone.low)
    assert compared_means(means_of(yards, said["a"], said["a"])).p == 1
    assert (whole.by, alone.by) == ("examples", "rows")
    assert compared_means(means_of(yards, said["a"], said["b"])[:4]) is None
    again = compared_means(means_of(yards, said["a"], said["b"]), least_error=whole.error)
    assert (again.low, again.high, again.p) == pytest.approx((whole.low, whole.high, whole.p))


def test_pairing_matters():
    yards, said = planted({"a": 0.5})
    nudged = {s: sigmoid(np.log(p / (1 - p)) + 0.02) for s, p in said["a"].items()}
    close = compared(yards, said["a"], nudged, draws=200)
    assert close.high - close.low < 0.1  # though single residuals scatter by much more


def test_too_few_seeds_say_nothing():
    yards, said = planted({"a": 0.1, "b": 0.9}, seeds=(20, 21))
    assert compared(yards, said["a"], said["b"]) is None


def test_nothing_to_forget_says_nothing():
    yards, said = planted({"a": 0.1, "b": 0.9})
    flat = {s: Yard(y.ceiling, y.floor, y.retrain) for s, y in yards.items()}  # the ceiling under the floor
    assert compared(flat, said["a"], said["b"], draws=50) is None


def test_holm():
    p = [0.001, 0.02, 0.3]
    assert holm(p) == [0.003, 0.04, 0.3]
    assert holm([]) == []
    assert all(b >= a for a, b in zip(p, holm(p), strict=True))
