"""Taking a share of fine-tuning's change back, unit by unit, before the update begins: which, and how far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from curerec.circuits.adapter import Deltas
from curerec.methods.rules import Gradients, Masks, Rules
from curerec.methods.stopping import Watch
from curerec.methods.task import Task
from curerec.methods.unseen import Unseen
from curerec.recommender.units import Units

#: Parts of the way back that are tried, from the smallest.
DEPTHS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)

#: The same where a part of the way is along what D_f wrote, which is known but for its length.
FARTHER = (*DEPTHS, 1.2, 1.4, 1.6)


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


@dataclass(frozen=True)
class TakenBack:
    """What goes back of what D_f wrote, beside what goes back of fine-tuning's whole change.

    Attributes:
        part: of the way back that is this.
        amounts: what D_f wrote into each weight, by parameter name.
        masks: weights that it is taken off.
    """

    part: float
    amounts: Gradients
    masks: Masks

    @torch.no_grad()
    def take_off(self, parameters: Gradients, depth: float) -> None:
        """Take ``depth`` times the part off the weights, in place."""
        for name, mask in self.masks.items():
            if name in self.amounts:
                parameters[name].sub_(self.part * depth * self.amounts[name] * mask)


def rolled_back(
    task: Task,
    rules: Rules,
    kept: np.ndarray,
    rolled: Masks | None,
    watch: Watch,
    open_gap: float | None,
    unseen: Unseen | None = None,
    taken_back: TakenBack | None = None,
) -> tuple[Any, float]:
    """A copy of theta_o part of the way back to what ``kept`` allows, and which part.

    How far back closes the membership gap depends on how much was remembered: one share for all requests
    leaves the gap open on some and goes too far on others. Passes over the sample of the looks tell.

    Args:
        task: the request.
        rules: roles of the units.
        kept: share of fine-tuning's change that each unit keeps all of the way back, [n_units].
        rolled: the weights that go back; None: those that may move.
        watch: looks at D_f and D_c.
        open_gap: share of the gap that may be left: of :data:`DEPTHS` (:data:`FARTHER`), the first that
            leaves no more; None: all of the way.
        unseen: embeddings that are the base's whatever the part.
        taken_back: what D_f wrote, of which a part goes back instead.

    Source: this project's own. Only D_f, D_c and the base model enter.
    """
    changed = task.deltas(rules.units)
    masks = rules.masks if rolled is None else rolled
    along = 1.0 if taken_back is None else 1 - taken_back.part
    depths = DEPTHS if taken_back is None else FARTHER

    def at(depth: float) -> tuple[Any, float]:
        model = task.copy_of_model()
        roll_back(model, rules.units, changed, 1 - along * depth * (1 - kept), masks)
        if taken_back:
            taken_back.take_off(dict(model.named_parameters(remove_duplicate=False)), depth)
        if unseen:
            unseen.put_back(model)
        return model, depth

    if open_gap is None:
        return at(1.0)
    allowed = watch.target + open_gap * max(watch.first["membership_auc"] - watch.target, 0.0)
    low, high = 0, len(depths) - 1  # bisection: the gap closes with the depth
    while low < high:
        middle = (low + high) // 2
        if watch.membership(at(depths[middle])[0]) <= allowed:
            high = middle
        else:
            low = middle + 1
    return at(depths[low])
