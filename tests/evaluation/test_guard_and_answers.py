"""The no-op guard, answers about deleted data, and the table of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curerec.errors import ConfigError
from curerec.evaluation.answers import answers
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
