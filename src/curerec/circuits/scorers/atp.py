"""Scorer ``atp``: attribution patching."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from curerec.circuits.attribution import attribute
from curerec.circuits.passes import Scores
from curerec.prompts.encoding import Prompts


def score(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    among: Collection[str] | None = None,
    batch_size: int = 64,
) -> Scores:
    """First-order effect on the margin of giving each module its corrupt activation.

    ``score_i = sum over positions and features of (a_i(x') - a_i(x)) * dm/da_i at x``. Heads are slices of
    the output projection's input, so no [batch, pos, head, d_model] tensor is built and grouped keys need no
    ungrouping. Two forward passes and one backward pass an example.

    Args:
        model: decoder of a known family.
        clean: [n] prompts.
        corrupt: [n] prompts of the same lengths.
        answers: token ids of (no, yes).
        among: modules to score; None: all. Where none lies below an adapter's lowest layer, what is below is
            computed once a prompt and kept.
        batch_size: pairs a pass.

    Returns:
        Per-example scores in logits, [n, modules].

    Raises:
        PromptError: pairs are missing or do not align.

    Source: Nanda 2023, attribution patching; METHOD section 3.
    """
    return attribute(model, clean, corrupt, answers, scorer="atp", among=among, batch_size=batch_size)
