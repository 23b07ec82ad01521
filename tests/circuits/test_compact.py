"""The fewest parts: on judges where a ranking one by one must fail, on planted circuits, and by gradient."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.circuits import compact as module
from curerec.circuits.compact import compact, elimination_order, fewest_parts
from curerec.circuits.core import find_core
from curerec.circuits.faithfulness import Faithfulness
from curerec.errors import PromptError
from curerec.testing.planted import planted
from made_cases import in_turn


def together(sets):
    """0 and 1 carry the answer; 2 to 5 matter most alone, two against two; 6 to 9 do nothing."""
    value = [
        1.0 * (0 in s) + 1.0 * (1 in s) + 3.0 * ((2 in s) - (3 in s) + (4 in s) - (5 in s)) for s in sets
    ]
    return np.asarray(value)[:, None] + np.zeros(4)


def copies(sets):
    """0 to 4 hold the same: any one of them is enough. 5 is needed besides."""
    return np.asarray([[2.0 * (bool(set(s) & set(range(5))) and 5 in s)] * 4 for s in sets])


def test_what_works_against_the_answer_goes_first_and_what_does_nothing_next():
    f = Faithfulness(together, 10)
    found = compact(f, f)
    assert set(found.order[-2:]) == {3, 5} and set(found.order[-6:-2]) == {6, 7, 8, 9}
    assert found.curve[0] == (0, 0.0) and found.curve[-1] == (10, 1.0)
    assert len(found.members) == 1  # one of those that nothing is left to undo


def test_pairs_that_move_nothing_are_refused():
    with pytest.raises(PromptError, match="moved the answer"):
        Faithfulness(lambda sets: np.zeros((len(sets), 4)), 5)


def test_of_parts_that_hold_the_same_one_is_enough():
    f = Faithfulness(copies, 8)
    found = compact(f, f)
    assert len(found.members) == 2 and 5 in found.members and found.faithfulness == 1


@pytest.mark.parametrize("share", [1e-9, 0.15, 0.5])
def test_the_order_ends_with_what_is_needed_however_many_go_at_a_time(share):
    order = elimination_order(Faithfulness(copies, 8), share=share)
    assert 5 in order[:2] and len(set(order[:2]) & set(range(5))) == 1 and sorted(order) == list(range(8))


def test_two_that_stand_in_for_each_other_do_not_go_together():
    f = Faithfulness(lambda sets: np.asarray([[2.0 * bool(set(s) & {0, 1})] * 4 for s in sets]), 20)
    assert len(elimination_order(f, share=0.9)) == 20 and elimination_order(f, share=0.9)[0] in (0, 1)


@pytest.mark.slow_but("True-*")
@pytest.mark.parametrize("kind", ["head", "mlp", "two_step", "and"])
@pytest.mark.parametrize("by_gradient", [False, True])
def test_planted_circuits_are_found(kind, by_gradient, monkeypatch):
    truth = planted(kind, seed=3)
    if by_gradient:
        monkeypatch.setattr(module, "TRIED_ONE_BY_ONE", 0)
    found = fewest_parts(truth.model, truth.clean, truth.corrupt, truth.answers)
    names = find_core(truth.model, truth.clean, truth.corrupt, truth.answers, draws=4).modules
    assert {names[k] for k in found.members} <= truth.modules and found.faithfulness >= 0.9


@pytest.mark.slow_but("0-False")
@in_turn(seed=range(4), by_gradient=[False, True])
def test_of_an_or_gate_one_arm_is_enough(seed, by_gradient, monkeypatch):
    if by_gradient:
        monkeypatch.setattr(module, "TRIED_ONE_BY_ONE", 0)
    truth = planted("or", seed=seed)
    found = fewest_parts(truth.model, truth.clean, truth.corrupt, truth.answers)
    core = find_core(truth.model, truth.clean, truth.corrupt, truth.answers, draws=4)
    assert {core.modules[k] for k in found.members} < truth.modules
    assert len(found.members) <= len(core.core)


def test_a_single_pair_cannot_choose_and_judge():
    truth = planted("head", seed=3)
    one = np.arange(1)
    with pytest.raises(PromptError, match="fewer than two pairs"):
        fewest_parts(truth.model, truth.clean.take(one), truth.corrupt.take(one), truth.answers)
