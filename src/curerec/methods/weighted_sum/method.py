"""The usual unlearning in the loop of ``cure``: the plain sum of both gradients over all parameters."""

from __future__ import annotations

from typing import Any

from curerec.methods.losses import ForgetLoss
from curerec.methods.surgery import WholeVector, operate
from curerec.methods.task import Task
from curerec.methods.unlearn import UnlearnConfig, retain_weight
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [3e-4, 1e-3, 3e-3], "retain_weight": [None, 1.0, 3.0]}


class WeightedSumConfig(UnlearnConfig):
    """The loop, with the losses of ``cure``."""

    forget_loss: ForgetLoss = "rewind"


def weighted_sum(task: Task, config: WeightedSumConfig | None = None) -> Outcome:
    """The objective of ``cure`` descended as it is: no circuit, no groups, nothing projected or taken back.

    Args:
        task: the request.
        config: see :class:`WeightedSumConfig`.

    Source: what CURE (arXiv 2604.04982) sets out from; this project's row for what its loop alone is worth.
    """
    config = config or WeightedSumConfig()
    rule = WholeVector(task.original.model, retain_weight(task, config))
    return operate(task, config, rule, "weighted_sum")
