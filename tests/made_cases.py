"""Which cases of a test are fast and which are left to the soak."""

from __future__ import annotations

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


def in_turn(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise by all combinations of two arguments, of which each value of the first is fast once.

    Args:
        axes: the name of an argument -> its values, twice. The values of the second take turns.

    Returns:
        One mark for both arguments.
    """
    (one, firsts), (other, seconds) = ((name, list(values)) for name, values in axes.items())
    cases = [
        pytest.param(a, b) if k % len(seconds) == j else soaked(a, b)
        for k, a in enumerate(firsts)
        for j, b in enumerate(seconds)
    ]
    return pytest.mark.parametrize((one, other), cases)


def every_pair(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise by all combinations, of which few fast ones hold every pair of two axes' values.

    Faults hang on one or two settings far more often than on three at once (Kuhn et al. 2004), so the rest
    is soaked.

    Args:
        axes: name of an argument -> its values, told apart by ``repr``.

    Returns:
        One mark for all arguments.
    """
    cases = list(itertools.product(*(list(values) for values in axes.values())))
    pairs = {case: set(itertools.combinations(enumerate(map(repr, case)), 2)) for case in cases}
    left, fast = set().union(*pairs.values()), set()
    while left:
        best = max(cases, key=lambda case: len(pairs[case] & left))  # the first of the best
        fast.add(best)
        left -= pairs[best]
    return pytest.mark.parametrize(
        tuple(axes), [pytest.param(*case) if case in fast else soaked(*case) for case in cases]
    )
