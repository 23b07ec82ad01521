"""Scorer ``atp_ig``: attribution patching with the gradient averaged between the two prompts."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from curerec.circuits.attribution import attribute
from curerec.circuits.passes import Scores
from curerec.prompts.encoding import Prompts

Rule = Literal["midpoint", "left", "right"]


def points(steps: int, rule: Rule) -> tuple[float, ...]:
    """Where the gradient is taken: 0 is the corrupt, 1 the clean end, [steps].

    >>> points(4, "midpoint"), points(2, "left"), points(2, "right")
    ((0.125, 0.375, 0.625, 0.875), (0.0, 0.5), (0.5, 1.0))
    """
    shift = {"midpoint": 0.5, "left": 0.0, "right": 1.0}[rule]
    return tuple((k + shift) / steps for k in range(steps))


def score(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    steps: int = 5,
    rule: Rule = "midpoint",
    among: Collection[str] | None = None,
    batch_size: int = 64,
) -> Scores:
    """As ``atp``, the gradient averaged over ``steps`` points between the corrupt and the clean embeddings.

    The midpoint rule's error falls like steps^-2, that of the end-point rules like steps^-1; of the embedding
    node the scores add up to the whole change of the margin. 2 + S forward and S backward passes.

    Args:
        model, clean, corrupt, answers, among, batch_size: as for ``atp``; all passes are whole ones.
        steps: S, number of points.
        rule: ``midpoint``; ``left`` and ``right`` (which hold the corrupt, respectively the clean end) for
            comparison.

    Source: Hanna et al. 2024, EAP-IG, arXiv 2403.17806, eq. 4, which uses an end-point rule; midpoints here.
    """
    return attribute(
        model,
        clean,
        corrupt,
        answers,
        scorer="atp_ig",
        alphas=points(steps, rule),
        among=among,
        batch_size=batch_size,
    )
