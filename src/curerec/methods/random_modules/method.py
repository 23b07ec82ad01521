"""The control that every circuit method needs: the same rules on random groups."""

from __future__ import annotations

from curerec.groups.assign import random_groups
from curerec.methods.cure.method import CureConfig, explain, update_by_groups
from curerec.methods.task import Task
from curerec.records import Outcome


def random_modules(task: Task, config: CureConfig | None = None) -> Outcome:
    """``cure`` with its roles permuted within each unit type.

    Same sizes, same rules, same stopping: the distance to ``cure`` is what knowing the groups is worth.

    Source: PROTOCOL section 3.
    """
    config = config or CureConfig()
    _, units, groups = explain(task, config)
    twin = random_groups(groups, units.types, seed=task.seed)
    return update_by_groups(task, config.update, units, twin, None, "random_modules")
