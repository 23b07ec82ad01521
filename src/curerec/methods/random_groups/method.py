"""The control of the groups alone: random ones, in which weights are chosen as ``cure`` chooses them."""

from __future__ import annotations

from curerec.methods.cure.method import CureConfig, update_by_groups
from curerec.methods.random_modules.method import permuted
from curerec.methods.task import Task
from curerec.records import Outcome


def random_groups(task: Task, config: CureConfig | None = None) -> Outcome:
    """``cure`` with its roles permuted within each unit type, and nothing else changed.

    Which single weights move and go back is chosen by the forget gradient, as for ``cure``, inside the random
    groups. Its distance to ``cure`` is what circuit, contributions and groups are worth where weights are
    chosen well; that of :func:`~curerec.methods.random_modules.random_modules` is of groups and weights.

    Source: PROTOCOL section 3.
    """
    config = config or CureConfig()
    units, _, twin = permuted(task, config)
    return update_by_groups(task, config, units, twin, None, "random_groups")
