"""Which single weights move, and which go back first; of the twin as many, drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from curerec.methods.cure.gradient_share import at_original
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.rollback import TakenBack, changes
from curerec.methods.rules import Masks
from curerec.methods.saliency import (
    at_random,
    attributed,
    n_salient,
    only_forgetting,
    remembering,
    salient,
    share_of_gradient,
)
from curerec.methods.task import Task
from curerec.methods.written import written
from curerec.recommender.units import Units

if TYPE_CHECKING:
    from curerec.methods.cure.method import CureConfig

TABLES = ("embedding", "positions", "head")  # kinds of branches with a row a token or position


def weights_of(
    task: Task, config: CureConfig, units: Units, role: np.ndarray, as_large_as: np.ndarray | None = None
) -> tuple[Masks | None, Masks | None, TakenBack | None, dict[str, Any]]:
    """The single weights that may move, those that are taken back first, and what goes of what D_f wrote.

    Args:
        task: the request.
        config: of the method.
        units, role: update units and codes of their roles, int [n_units].
        as_large_as: of a twin: the roles whose weights its own, drawn at random, equal in number.

    Returns:
        The first two as masks by parameter name, None where the configuration names no share; the third,
        None where it names no part or training kept no waypoints; and what the record says of them.
    """
    sizes = len(task.forget), len(task.retain)
    back, share = config.rolled_back_for(*sizes), config.saliency_for(*sizes)
    if share is None and back is None:
        return None, None, None, {}
    objective = ForgetObjective.of(task, config.update)
    if objective.at_original is None:  # the groups were made before, by another process
        at_original(objective, size=config.forget_size, seed=task.seed)
    gradient = objective.at_original
    assert gradient is not None
    ours = role if as_large_as is None else as_large_as
    among = None if as_large_as is None else _moved(task, units)
    moving, rolled, taken_back, about = None, None, None, {}
    if share is not None:
        moving = salient(units, ours, gradient, share)
        if as_large_as is not None:
            count = n_salient(moving, units, ours)
            moving = at_random(units, role, gradient, count, seed=task.seed, among=among)
        held = share_of_gradient(moving, units, role, gradient)
        about["saliency"] = {"share": share, "gradient_share": held}
    if back is not None:
        change = changes(task.original.model, units, task.deltas(units))
        rolled = remembering(units, ours, gradient, change, back)
        if as_large_as is not None:
            count = n_salient(rolled, units, ours)
            able = {name: g for name, g in gradient.items() if name in change}  # what going back reaches
            drawn = at_random(units, role, able, count, seed=task.seed, salt=99, among=among)
            rolled = only_forgetting(drawn, units, role)
        about["rolled_back"] = {
            "share": back,
            "weights": n_salient(rolled, units, role),
            "attributed": attributed(rolled, gradient, change),
        }
        part = config.written_for(*sizes)
        if part is not None:
            amounts = written(task, size=config.forget_size)
            if amounts is not None:
                # The twin's weights are drawn already, and as many.
                most = remembering(units, role, gradient, amounts, back) if as_large_as is None else rolled
                taken_back = TakenBack(part, amounts, most)
                about["written"] = {
                    "part": part,
                    "weights": n_salient(most, units, role),
                    "attributed": attributed(most, gradient, amounts),
                }
    objective.at_original = None  # as large as the weights, and asked for no more
    return moving, rolled, taken_back, about


def _moved(task: Task, units: Units) -> Masks:
    """Of each table that is one unit, the weights in rows that training moved, by parameter name.

    In words that no training prompt shows nothing is remembered and nothing moves: ``cure``, which goes by
    the gradient, takes none. Where rows are units the twin's roles keep them apart (``random_modules``).
    """
    if units.granularity != "head_mlp":
        return {}
    deltas = task.deltas(units)
    return {
        branch.weight: (deltas[branch.weight] != 0).any(dim=1, keepdim=True).expand_as(deltas[branch.weight])
        for branch in units.branches
        if branch.kind in TABLES and branch.weight in deltas
    }
