"""The first by score whose loss takes the answer away: what is necessary, beside what is sufficient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curerec.circuits.faithfulness import Faithfulness
from curerec.circuits.selection import sizes_to_judge, smallest_prefix


@dataclass(frozen=True)
class Necessary:
    """Elements that are knocked out together.

    Attributes:
        members: indices, the strongest support of the answer first.
        lost: share of the margin that goes with them, 1 - f(all without them).
        curve: (size, share lost) of every size tried.
    """

    members: tuple[int, ...]
    lost: float
    curve: tuple[tuple[int, float], ...]


def necessary(f: Faithfulness, mean: np.ndarray, *, threshold: float = 0.9, most: int = 24) -> Necessary:
    """The smallest prefix of the elements that support the answer whose loss takes ``threshold`` of it.

    A faithful circuit must hold everything that is needed together, in a model that spreads its work over all
    parts nearly all of it; a few parts may still be the ones that nothing works without.

    Args:
        f: over the judging pairs.
        mean: mean score of every element on other pairs, negative where it supports the answer.
        threshold: share of the margin that has to go.
        most: sizes that are tried at first; between the last that fails and the first that takes enough
            bisection goes on, as in :func:`curerec.circuits.selection.smallest_prefix`.

    Returns:
        The set; all elements that support the answer where no smaller prefix takes enough.
    """
    order = np.argsort(mean, kind="stable")
    order = order[mean[order] < 0]
    sizes = [n for n in sizes_to_judge(len(order), most=most) if n]
    if not sizes:
        return Necessary((), 0.0, ())

    def judged(sizes: Sequence[int]) -> Sequence[tuple[int, float]]:
        lost = 1 - f.of([f.complement({int(k) for k in order[:n]}) for n in sizes])
        return [(n, float(v)) for n, v in zip(sizes, lost, strict=True)]

    sizes, curve, at = smallest_prefix(judged, sizes, threshold)
    return Necessary(tuple(int(k) for k in order[: sizes[at]]), curve[at][1], curve)
