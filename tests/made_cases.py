"""Which cases of a test are fast and which are left to the soak."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable
from typing import Any

import pytest

from made_families import ALIKE


def alike_soaked(kinds: Iterable[str]) -> list[Any]:
    """Types, or kinds of a type (:func:`made_families.model_of_kind`): those alike others are soaked."""
    return [soaked(k) if k.partition("+")[0] in ALIKE else k for k in kinds]


def few(values: Iterable[Any], fast: Iterable[Any]) -> list[Any]:
    """Values of which these alone are fast, where the others take the same way through the code.

    Args:
        values: of one argument.
        fast: some of them.
    """
    return [value if value in fast else soaked(value) for value in values]


def soaked(*values: Any) -> Any:
    """A case for the soak."""
    return pytest.param(*values, marks=[pytest.mark.soak])


def of_all(fast: Iterable[tuple[Any, ...]], **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise by all combinations of some arguments, of which these are fast and the rest is soaked.

    Args:
        fast: combinations, in the order of the arguments.
        axes: name of an argument -> its values.

    Returns:
        One mark for all arguments.
    """
    chosen = list(fast)
    cases = itertools.product(*axes.values())
    return pytest.mark.parametrize(
        tuple(axes), [pytest.param(*case) if case in chosen else soaked(*case) for case in cases]
    )


def in_turn(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise by all combinations of two arguments, of which each value of the first is fast once.

    Args:
        axes: the name of an argument -> its values, twice. The values of the second take turns.

    Returns:
        One mark for both arguments.
    """
    axes = {name: list(values) for name, values in axes.items()}
    firsts, seconds = axes.values()
    return of_all(zip(firsts, itertools.cycle(seconds), strict=False), **axes)


def every_pair(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise by all combinations, of which few fast ones hold every pair of two axes' values.

    Faults hang on one or two settings far more often than on three at once (Kuhn et al. 2004), so the rest
    is soaked.

    Args:
        axes: name of an argument -> its values, told apart by ``repr``.

    Returns:
        One mark for all arguments.
    """
    axes = {name: list(values) for name, values in axes.items()}
    cases = list(itertools.product(*axes.values()))
    pairs = {case: set(itertools.combinations(enumerate(map(repr, case)), 2)) for case in cases}
    left, fast = set().union(*pairs.values()), []
    while left:
        fast.append(max(cases, key=lambda case: len(pairs[case] & left)))  # the first of the best
        left -= pairs[fast[-1]]
    return of_all(fast, **axes)


def mark_slow(items: Iterable[Any]) -> None:
    """Mark what ``pytest.mark.slow_but`` of a function does not name as slow.

    Args:
        items: all tests that one function makes. The mark's arguments are patterns (:mod:`fnmatch`) of the
            ids of cases, which are ``[...]`` of a test's name.

    Raises:
        ValueError: for a pattern of no case, which would keep nothing fast.
    """
    by_patterns: dict[tuple[str, ...], list[Any]] = {}
    for item in items:
        if mark := item.get_closest_marker("slow_but"):
            by_patterns.setdefault(mark.args, []).append(item)
    for patterns, marked in by_patterns.items():
        ids = [item.callspec.id for item in marked]
        if missed := [p for p in patterns if not fnmatch.filter(ids, p)]:
            raise ValueError(f"{marked[0].originalname}: slow_but names no case: {', '.join(missed)}")
        for item, case in zip(marked, ids, strict=True):
            if not any(fnmatch.fnmatchcase(case, p) for p in patterns):
                item.add_marker("slow")
