"""Scorer ``adapter`` integrated along the path from the base model to the fine-tuned one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from curerec.circuits.adapter import Deltas, adapter_scores, unmerged
from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.units import Units


def path_scores(
    model: Any,
    prompts: Prompts,
    answers: tuple[int, int],
    units: Units,
    deltas: Deltas,
    *,
    steps: int = 4,
    batch_size: int = 128,
) -> Float[np.ndarray, "n units"]:
    """What each unit's change by fine-tuning did to each example's loss, from base to fine-tuned model.

    ``-sum(dW * dL/dW)`` averaged at the midpoints of ``W_base + alpha dW``. The sum over units is the loss
    that fine-tuning took away (completeness). At the fine-tuned weights alone the score of
    data that was trained on is near zero by construction, whatever the unit stores: training ended where the
    gradient vanished. The path sees the whole descent.

    Args:
        model: the fine-tuned model; left as it was.
        prompts, answers, units, deltas, batch_size: as for :func:`curerec.circuits.adapter.adapter_scores`.
        steps: midpoints; 1 scores halfway.

    Returns:
        float32 [n, n_units], nats, positive where the unit's change lowered the loss.

    Source: Sundararajan et al. 2017 (integrated gradients) on weights; this project's own extension.
    """
    if parallel.sharing() and len(prompts):

        def some(mine: np.ndarray) -> np.ndarray:
            part = prompts.take(mine)
            return path_scores(model, part, answers, units, deltas, steps=steps, batch_size=batch_size)

        return parallel.by_rows(len(prompts), some)
    total = np.zeros((len(prompts), len(units.names)), np.float32)
    with unmerged(model):  # a merged adapter's scaling is in the weights already
        for k in range(steps):
            alpha = (k + 0.5) / steps
            with part_of_the_way(model, deltas, alpha) as (halfway, scale):
                total += adapter_scores(halfway, prompts, answers, units, deltas, batch_size=batch_size) * (
                    scale / steps
                )
    return parallel.as_first(total)


@contextmanager
def part_of_the_way(model: Any, deltas: Deltas, alpha: float) -> Iterator[tuple[Any, float]]:
    """The model at W_base + alpha dW, and what its scores must be multiplied by.

    Args:
        model: the fine-tuned model; as it was again afterwards.
        deltas: from :func:`curerec.circuits.adapter.weight_deltas`; empty with LoRA.
        alpha: 0 is the base, 1 the fine-tuned model.
    """
    if deltas:
        halfway = copy.deepcopy(model)
        parameters = dict(halfway.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, delta in deltas.items():
                parameters[name].sub_((1 - alpha) * delta)
        yield halfway, 1.0
        return
    # LoRA: the branch's share is its scaling. The score multiplies by the branch's own (scaled) gradient, so
    # one factor alpha has to go again.
    layers = [m for m in model.modules() if hasattr(m, "scaling") and hasattr(m, "lora_B")]
    before = [dict(m.scaling) for m in layers]
    try:
        for m, old in zip(layers, before, strict=True):
            m.scaling.update({k: v * alpha for k, v in old.items()})
        yield model, 1 / alpha if alpha else 1.0
    finally:
        for m, old in zip(layers, before, strict=True):
            m.scaling.update(old)
