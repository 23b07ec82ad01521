"""What the fast cases of a test cover."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from made_cases import alike_soaked, every_pair, in_turn, mark_slow
from made_families import ALIKE, TYPES


def test_the_fast_cases_hold_every_pair_and_all_cases_are_run_by_someone():
    axes = {"a": (None, 3, 4), "b": "xyz", "c": (True, False), "d": (1, 2, 3)}
    _, cases = every_pair(**axes).args
    assert [case.values for case in cases] == list(itertools.product(*axes.values()))
    fast = [case.values for case in cases if not case.marks]
    assert len(fast) <= 12 < len(cases) == 54
    for (i, one), (j, two) in itertools.combinations(enumerate(axes.values()), 2):
        assert {(case[i], case[j]) for case in fast} == set(itertools.product(one, two))


def test_of_two_arguments_nothing_is_left_out():
    assert not any(case.marks for case in every_pair(a=range(4), b=range(3)).args[1])


def test_every_type_is_fast_or_alike_another():
    kinds = alike_soaked([*TYPES, "phi+lora", "qwen3+lora"])
    marked = {k.values[0] for k in kinds if not isinstance(k, str)}
    assert marked == {*ALIKE, "qwen3+lora"}
    assert set(TYPES) - marked == {"llama", "gpt2", "gemma2", "phi", "phi3"}


def test_in_turn_every_value_is_fast_once_and_all_pairs_are_run_by_someone():
    names, cases = in_turn(a="vwxyz", b=(1, 2)).args
    assert names == ("a", "b")
    assert [case.values for case in cases] == list(itertools.product("vwxyz", (1, 2)))
    fast = [case.values for case in cases if not case.marks]
    assert fast == [("v", 1), ("w", 2), ("x", 1), ("y", 2), ("z", 1)]


def made_items(patterns, ids):
    """Tests of one function, as pytest makes them, and where what they are marked with lands."""
    added: dict[str, list[str]] = {case: [] for case in ids}
    mark = None if patterns is None else SimpleNamespace(args=patterns)
    items = [
        SimpleNamespace(
            originalname="test_it",
            callspec=SimpleNamespace(id=case),
            get_closest_marker={"slow_but": mark}.get,
            add_marker=added[case].append,
        )
        for case in ids
    ]
    return items, added


def test_all_but_what_is_named_is_slow():
    items, added = made_items(("cure-*", "*-full"), ["cure-lora", "npo-lora", "npo-full"])
    mark_slow(items)
    assert added == {"cure-lora": [], "npo-lora": ["slow"], "npo-full": []}


def test_without_the_mark_nothing_is_slow():
    items, added = made_items(None, ["a", "b"])
    mark_slow(items)
    assert added == {"a": [], "b": []}


def test_a_name_of_no_case_is_told():
    """A case that was renamed would leave nothing of its test fast."""
    items, _ = made_items(("cure", "nop"), ["cure", "npo"])
    with pytest.raises(ValueError, match="test_it: slow_but names no case: nop"):
        mark_slow(items)
