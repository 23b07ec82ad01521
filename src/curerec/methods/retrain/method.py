"""Retrain: a fresh fine-tuning on D_r."""

from __future__ import annotations

from typing import Any

from curerec.methods.task import Task
from curerec.recommender.tune import tune
from curerec.records import Outcome


def retrain(task: Task, config: Any = None) -> Outcome:
    """Fine-tune the base on D_r by the recipe of the original, with the task's seed.

    Args:
        task: the request; ``task.tuning`` is the recipe.
        config: takes none.
    """
    with task.clock.stage("encode", told=False):
        prompts = task.encode(task.retain)
    model = task.fresh()
    with task.clock.stage("retrain") as advance:
        tune(
            model,
            prompts,
            task.answers,
            task.tuning,
            seed=task.seed,
            runtime=task.runtime,
            progress=advance,
        )
    seconds = task.clock.seconds["retrain"]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stages = dict(task.clock.seconds)
    return Outcome(
        "retrain", model, seconds, task.clock.total_s, n_trainable=trainable, details={"stages": stages}
    )
