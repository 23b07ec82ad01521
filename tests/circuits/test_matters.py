"""Does a circuit matter: on judges whose answers are known, and where the answer is planted."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.circuits.core import find_core
from curerec.circuits.faithfulness import Faithfulness, judge_modules
from curerec.circuits.matters import drop_error, matters
from curerec.circuits.necessary import necessary
from curerec.delong import auc_drop
from curerec.testing.planted import planted

LABEL = np.array([1, 0] * 20)
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=len(LABEL))


def judge(sets):
    """Elements 0 and 1 carry the answer together; 2 to 9 carry nothing."""
    return np.stack([(3.0 if {0, 1} <= set(s) else 0.0) + 0.5 * NOISE for s in sets])


def test_the_circuit_takes_the_auc_with_it_and_random_sets_do_not():
    found = matters(judge, 10, (0, 1), LABEL, draws=20)
    assert found["auc"] == 1.0 and found["auc_kept"] == 1.0 and found["margin_kept"] == pytest.approx(1)
    assert found["auc_without"] == found["auc_floor"] < 0.8 and found["lost"] == pytest.approx(1)
    assert found["auc_without"] < found["auc_random"] and found["lost_random"] < 0.7
    assert found["auc_random_low"] <= found["auc_random"] <= found["auc_random_high"]
    other = matters(judge, 10, (4, 5), LABEL)
    assert other["auc_without"] == 1.0 and other["lost"] == pytest.approx(0)


def better_when_patched(sets):
    """Each of the first four elements that is patched lowers all margins and yet helps the order."""
    patched = np.array([4 - len(set(s) & {0, 1, 2, 3}) for s in sets])[:, None]
    return 0.6 + NOISE + 0.1 * patched * (NOISE < -0.6) - 0.01 * patched


def hardly_moved(sets):
    """Patched margins differ by noise from those of the whole model: the AUC falls by less than its error."""
    other = np.random.default_rng(1).normal(size=len(LABEL))
    return np.stack([0.6 + NOISE - 0.02 * other * (10 - len(set(s))) / 10 for s in sets])


@pytest.mark.parametrize("judge", [better_when_patched, hardly_moved])
def test_an_auc_that_does_not_fall_has_no_shares(judge):
    """They had been of a gap below 0 or of noise: .93 of it, whatever was knocked out."""
    found = matters(judge, 10, (0, 1, 2, 3), LABEL)
    assert abs(found["auc"] - found["auc_floor"]) < 0.1
    if judge is better_when_patched:
        assert found["auc_floor"] > found["auc"]
    assert np.isnan(found["lost"]) and np.isnan(found["lost_random"])
    assert 0 < found["auc_without"] < 1 and np.isfinite(found["auc_random"])


def test_one_prompt_of_a_label_shows_no_fall():
    few = matters(lambda sets: judge(sets)[:, :3], 10, (0, 1), LABEL[:3])
    assert np.isnan(few["lost"]) and np.isfinite(few["auc"])


def test_the_error_of_the_fall_is_that_of_the_stopping_rule():
    rng = np.random.default_rng(2)
    label, before = rng.integers(0, 2, 90), rng.normal(size=90)
    after = np.round(before + 0.5 * rng.normal(size=90), 1)  # ties included
    assert drop_error(label, before, after) == pytest.approx(auc_drop(label, before, after)[1], rel=1e-12)


def test_what_is_necessary_is_smaller_than_what_is_sufficient():
    f = Faithfulness(judge, 10)
    mean = np.array([-2.0, -1.5, *([0.1] * 4), *([-0.1] * 4)])
    needed = necessary(f, mean)
    assert needed.members == (0,) and needed.lost == pytest.approx(1) and needed.curve[0] == (1, 1.0)
    wrong = necessary(f, -np.abs(mean[::-1]))  # a ranking that puts what carries it last
    assert set(wrong.members) >= {0} or set(wrong.members) >= {1}
    assert necessary(f, np.ones(10)).members == ()


@pytest.mark.parametrize("kind", ["head", "two_step", "and"])
def test_a_planted_circuit_is_necessary(kind):
    truth = planted(kind, seed=2)
    circuit = find_core(truth.model, truth.clean, truth.corrupt, truth.answers, draws=4)
    judge = judge_modules(truth.model, truth.clean, truth.corrupt, truth.answers, circuit.modules)
    f = Faithfulness(judge, len(circuit.modules))
    needed = necessary(f, circuit.scores.mean(0))
    assert {circuit.modules[k] for k in needed.members} <= truth.modules and needed.lost > 0.99
