"""Taking a share of fine-tuning's change back, unit by unit, before the update begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from curerec.circuits.adapter import Deltas
from curerec.methods.rules import Gradients, Masks
from curerec.recommender.units import Units


def changes(model: Any, units: Units, deltas: Deltas) -> Gradients:
    """What going all the way back takes off each weight, by parameter name: dW, with LoRA the sliced factor.

    Args:
        model: fine-tuned.
        units: of the model.
        deltas: as for :func:`roll_back`.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {
        b.weight: deltas[b.weight] if b.factor is None else parameters[b.weight].detach()
        for b in units.branches
    }


@torch.no_grad()
def roll_back(model: Any, units: Units, deltas: Deltas, kept: np.ndarray, masks: Masks | None = None) -> None:
    """Keep a share of what fine-tuning changed in each unit, in place.

    ``W <- W_base + kept_i (W - W_base)`` over unit i's slice. With LoRA the branch itself is the change, so
    the sliced factor is scaled: ``B A`` becomes ``kept_i B A`` on the unit's rows (columns).

    Memory of single examples and skill were written by the same training, but memory lies where the forget
    contributions are: rolling those units back removes it at no cost, and a short update on D_r restores what
    of the skill went with it. From theta_o itself an update of the same length gets half as far, because
    each step has to undo what hundreds of steps had done.

    Args:
        model: a copy of theta_o; changed.
        units: of the model.
        deltas: W - W_base from :func:`curerec.circuits.adapter.weight_deltas`; empty with LoRA.
        kept: 1 leaves a unit as it is, 0 takes it back to the base, float [n_units].
        masks: only these weights of a unit are taken back (:mod:`curerec.methods.saliency`).

    Source: this project's own; rewinding a whole model to an earlier training step is Rewind-to-Delete (Mu
    and Klabjan 2024, arXiv 2409.09778), which needs stored checkpoints and has no groups.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    done: set[str] = set()
    for branch in units.branches:
        if branch.weight in done:  # tied embeddings appear twice
            continue
        done.add(branch.weight)
        weight = parameters[branch.weight]
        share = torch.from_numpy(kept[branch.unit]).to(weight)
        share = share.view([-1 if d == branch.dim else 1 for d in range(weight.ndim)])
        if masks is not None:
            movable = masks.get(branch.weight)  # missing: a tensor in which every unit is frozen
            share = share if movable is None else torch.where(movable, share, 1.0)
        if branch.factor is None:
            weight.sub_((1 - share) * deltas[branch.weight])
        else:
            weight.mul_(share)
