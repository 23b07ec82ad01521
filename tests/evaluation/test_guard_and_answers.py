"""The no-op guard, answers about deleted data, and the table of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curerec.errors import ConfigError
from curerec.evaluation.answers import answers, gap_draws
from curerec.evaluation.bootstrap import resamples
from curerec.evaluation.guard import nothing_happened, probes_changed

LOGITS = np.random.default_rng(0).normal(size=(100, 2))
UP = np.array([0.0, 1.0])


def test_equal_predictions_are_nothing():
    assert nothing_happened(LOGITS, LOGITS.copy())
    assert nothing_happened(LOGITS, LOGITS + 3.0)  # both logits shifted: the same P(yes)
    assert nothing_happened(LOGITS, LOGITS + np.random.default_rng(1).normal(0, 1e-7, LOGITS.shape))


def test_one_probe_that_moved_is_something():
    moved = LOGITS.copy()
    moved[0, 1] += 0.01
    assert not nothing_happened(LOGITS, moved)
    assert probes_changed(LOGITS, moved) == 1
    assert nothing_happened(LOGITS, moved, tol=0.1)


def test_probes_spread_over_all_rows():
    late = LOGITS.copy()
    late[50:] += UP
    assert probes_changed(LOGITS, late) == 16
    assert probes_changed(LOGITS[:5], LOGITS[:5] + UP) == 5
    assert probes_changed(LOGITS, LOGITS + UP, probes=1) == 1


@pytest.mark.parametrize(
    ("a", "b", "probes"),
    [
        (LOGITS[:0], LOGITS[:0], 32),
        (LOGITS, LOGITS[:5], 32),
        (LOGITS, LOGITS * np.nan, 32),
        (LOGITS, LOGITS, 0),
    ],
)
def test_bad_probes_are_named(a, b, probes):
    with pytest.raises(ConfigError):
        nothing_happened(a, b, probes)


def test_answers_by_hand():
    y = np.array([0, 0, 1, 1])
    found = answers(np.array([0.0, 1.0, 1.0, 2.0]), y, np.array([0.0, 1.0, 2.0, 3.0]), y)
    assert (found["forget"], found["control"], found["gap"]) == (0.875, 1.0, -0.125)
    assert found["se"] > 0 and found["missing"] == {}


def test_answers_of_one_class_give_nan_with_the_reason():
    found = answers(np.zeros(3), np.ones(3), np.zeros(3), np.array([0, 1, 1]))
    assert math.isnan(found["gap"]) and "fewer than 2" in found["missing"]["gap"]


def made_sides(rng, hardness, users=40, rows=12):
    """Margins, labels and users of a set; the harder its users, the less their labels follow the margins."""
    user = np.repeat(np.arange(users), rows)
    z = rng.normal(0.3, 1.3, len(user))
    noise = rng.logistic(0, 1, len(user)) * hardness
    return z, (z + noise > 0).astype(int), user


def test_draws_of_the_gap_are_those_of_resampled_rows():
    rng = np.random.default_rng(3)
    (z, y, user), (w, v, other) = made_sides(rng, 1.0, 6, 4), made_sides(rng, 1.0, 6, 5)
    z, w = z.round(1), w.round(1)  # with ties
    groups = (user, other)
    drawn = gap_draws(z, y, w, v, draws=20, seed=4, groups=groups)
    found = []
    for of_z, of_w in resamples(len(z), len(w), draws=20, seed=4, groups=groups):
        for a, b in zip(of_z, of_w, strict=True):
            rows = [np.repeat(np.arange(len(x)), np.round(x / x[x > 0].min()).astype(int)) for x in (a, b)]
            found.append(answers(z[rows[0]], y[rows[0]], w[rows[1]], v[rows[1]])["gap"])
    assert np.allclose(drawn, found, atol=1e-12, equal_nan=True)


def test_a_set_of_one_class_has_no_drawn_gap():
    y = np.array([0, 1, 0, 1])
    assert np.isnan(gap_draws(np.arange(4.0), np.ones(4, int), np.arange(4.0), y, draws=3)).all()


def test_hard_users_are_no_silenced_users():
    """Users whose tastes are hard to predict: the gap is no method's doing, and the base shows it too."""
    rng = np.random.default_rng(5)
    (z, y, user), (w, v, other) = made_sides(rng, 3.0), made_sides(rng, 0.6)
    groups = (user, other + 1000)
    base = (0.5 * z + rng.normal(0, 0.1, len(z)), y, 0.5 * w + rng.normal(0, 0.1, len(w)), v)
    honest, silenced = (z, y, w, v), (np.zeros_like(z), y, w, v)

    def shortfall(new):
        apart = gap_draws(*new, groups=groups) - gap_draws(*base, groups=groups)
        return (answers(*base)["gap"] - answers(*new)["gap"]) / np.std(apart, ddof=1)

    told = answers(*honest)
    assert told["gap"] < -2.5 * told["se"]  # rows alone, held against 0, would turn the honest model down
    assert shortfall(honest) < 2 < 4 < shortfall(silenced)
