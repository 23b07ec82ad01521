"""The control that every circuit method needs: the same rules on random groups and random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from curerec.circuits.adapter import Deltas
from curerec.groups.assign import comparable, random_groups
from curerec.methods.cure.method import CureConfig, explain, update_by_groups
from curerec.methods.task import Task
from curerec.recommender.units import Units, units_of
from curerec.records import Groups, Outcome


def random_modules(task: Task, config: CureConfig | None = None) -> Outcome:
    """``cure`` with its roles permuted within each unit type, and as many weights drawn at random.

    Same sizes, same rules, same stopping: the distance to ``cure`` is what knowing the groups, and with
    ``saliency`` the weights in them, is worth; :func:`~curerec.methods.random_groups.random_groups` parts
    the two.

    Source: PROTOCOL section 3; the random weights are this project's own.
    """
    config = config or CureConfig()
    units, groups, twin = permuted(task, config)
    return update_by_groups(task, config, units, twin, None, "random_modules", as_large_as=groups)


def permuted(task: Task, config: CureConfig) -> tuple[Units, Groups, Groups]:
    """Units, the groups that ``cure`` would have, and these permuted within each type."""
    _, units, groups = explain(task, config)
    with task.clock.stage("groups", told=False):
        if units.granularity == "projection" and task.base_state is not None:
            units, groups = by_row(units_of(task.original.model, "row"), groups)
        else:
            units = replace(units, types=comparable(units.types))
        if config.granularity != "row":  # rows of a type are of one size but for a few norms
            units = replace(units, types=by_size(units, task.original.model))
        units = replace(units, types=by_training(units, task.deltas(units)))
        return units, groups, random_groups(groups, units.types, seed=task.seed)


def by_size(units: Units, model: Any) -> np.ndarray:
    """Types that also say how many weights a unit has: roles change places among units of one size alone.

    What is pooled because there are few of it may differ in size by a hundred times (an embedding and a bias,
    MLPs and an embedding); a unit that has no like keeps its role.

    Args:
        units: with the types that are permuted otherwise.
        model: that they are of.

    Returns:
        Labels, [units]. A LoRA factor counts where it is of one unit alone.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    size, done = np.zeros(len(units.names), np.int64), set()
    for branch in units.branches:
        if branch.weight in done:  # tied embeddings appear twice
            continue
        done.add(branch.weight)
        for name, dim in branch.slices:
            shape = parameters[name].shape
            np.add.at(size, branch.unit, shape.numel() // shape[dim])
        if branch.shared is not None and (branch.unit == branch.unit[0]).all():
            size[branch.unit[0]] += parameters[branch.shared].numel()
    return np.asarray([f"{kind} of {n}" for kind, n in zip(units.types, size, strict=True)], dtype=object)


def by_training(units: Units, deltas: Deltas) -> np.ndarray:
    """Types that also say whether training moved a unit at all: those it did not change roles by themselves.

    Rows of the embedding of words that no training prompt shows hold no memory and get no gradient. A twin
    that drew them for forgetting would have fewer weights that can forget than ``cure``, which freezes them.

    Args:
        units: with the types that are permuted otherwise.
        deltas: W - W_base by parameter name (:meth:`curerec.methods.task.Task.deltas`). Units of other
            weights (an adapter is the change itself) keep their types.

    Returns:
        Labels, [units].
    """
    moved = np.zeros(len(units.names), bool)
    for branch in units.branches:
        changed: Any = True
        if branch.weight in deltas:
            delta = deltas[branch.weight].movedim(branch.dim, 0)
            changed = (delta.reshape(len(delta), -1) != 0).any(dim=1).cpu().numpy()
        np.logical_or.at(moved, branch.unit, changed)
    labels = [kind if one else f"{kind} unmoved" for kind, one in zip(units.types, moved, strict=True)]
    return np.asarray(labels, dtype=object)


def by_row(rows: Units, groups: Groups) -> tuple[Units, Groups]:
    """Groups of whole projections as groups of their rows, so that a twin can be of equal size.

    Projections differ in size (the embedding of a small model holds most of its parameters): permuting roles
    among them would compare groups of different sizes.

    Args:
        rows: units of granularity ``row``.
        groups: of granularity ``projection``.

    Returns:
        The row units, all of one type but for the norms, and each row with the role of its projection.
        Rows differ in length from projection to projection: :func:`by_size` keeps them apart.
    """
    role_of = dict(zip(groups.modules, groups.role, strict=True))
    of = [name.split(".row.")[0] for name in rows.names]
    types = np.asarray(["norm" if ".row." not in name else "row" for name in rows.names], dtype=object)
    zeros = np.zeros(len(of))
    role = np.asarray([role_of[name] for name in of], dtype=object)
    return replace(rows, types=types), Groups(rows.names, role, zeros, zeros, zeros)
