"""Does a circuit matter: on judges whose answers are known, and where the answer is planted."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.circuits.core import find_core
from curerec.circuits.faithfulness import Faithfulness, judge_modules
from curerec.circuits.matters import matters
from curerec.circuits.necessary import necessary
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
