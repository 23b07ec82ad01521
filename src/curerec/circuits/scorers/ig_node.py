"""Scorer ``ig_node``: integrated gradients along each module's own activation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from curerec.circuits.activations import patching, recording, site_of, sites_of
from curerec.circuits.attribution import between
from curerec.circuits.passes import Cost, PairBatch, Scores, each_batch, frozen, margin, numpy_type
from curerec.circuits.scorers.atp_ig import Rule, points
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import answer_logits, wide


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
    """As ``atp``, the gradient averaged while the module itself goes from corrupt to clean activation.

    All else is run anew at every point, so with many steps each module's score is its ``exact`` one
    (completeness, module by module). S forward and backward passes a module: for checks and small models.

    Args:
        model, clean, corrupt, answers, among, batch_size: as for ``atp``; passes a module that is scored.
        steps, rule: as for ``atp_ig``.

    Source: Sundararajan et al. 2017, arXiv 1703.01365, eq. 3, with a module's activation as the input.
    """
    sites = sites_of(model)
    names = sites.names if among is None else tuple(name for name in sites.names if name in among)
    values = np.zeros((len(clean), len(names)), numpy_type(model))
    cost = Cost()

    def work(batch: PairBatch) -> None:
        with torch.no_grad():
            with recording(sites) as good:
                answer_logits(model, batch.clean, batch.last, answers)
            with recording(sites) as bad:
                answer_logits(model, batch.corrupt, batch.last, answers)
        embeds = between(model, batch, 1.0)
        for column, module in enumerate(names):
            name = site_of(module)
            delta = bad[name] - good[name]
            total = torch.zeros_like(wide(delta[:, 0, 0]))
            for alpha in points(steps, rule):
                a = (bad[name] - alpha * delta).detach().requires_grad_()
                with patching(sites, {name: a}, {module}):
                    logits = answer_logits(model, batch.clean, batch.last, answers, inputs_embeds=embeds)
                    # Inside, since a checkpointed layer is run again on the way back.
                    (grad,) = torch.autograd.grad(margin(logits, batch.label).sum(), a)
                # Of the other heads of the layer the patch reads nothing, so their gradient is zero.
                total += (wide(delta) * wide(grad)).sum((1, 2))
            values[batch.index, column] = (total / steps).cpu().numpy()
        cost.forwards += (2 + steps * len(names)) * len(batch.index)
        cost.backwards += steps * len(names) * len(batch.index)

    with frozen(model):
        each_batch(model, clean, corrupt, batch_size, work, cost)
    return Scores(names, values, None, "ig_node", cost)
