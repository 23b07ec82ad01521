"""What the methods of shards have in common: set up outside of the request's time, forget inside of it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from curerec.methods.shards.together import Together
from curerec.methods.shards.training import Shards
from curerec.methods.task import Task
from curerec.progress import Clock
from curerec.recommender.counted import PassCount
from curerec.records import Outcome


def serve(
    task: Task,
    name: str,
    make: Callable[[], Shards],
    answer: Callable[[Shards], Together],
) -> Outcome:
    """Train the shards as if at the recommender's making, then carry out the request.

    The making is no part of the request's cost (``details["setup_s"]`` and
    ``details["setup_forward_equivalents"]`` have its seconds and passes); restarting shards and whatever must
    be fitted anew afterwards is.

    Args:
        task: the request.
        name: of the method.
        make: assigns examples to shards.
        answer: the model that answers with the shards.
    """
    setup = Clock(task.clock.reporter)
    with PassCount() as passes, setup.stage("train the shards") as advance:
        shards = make()
        shards.train(advance)
    with task.clock.stage("update") as advance:
        hit = shards.forget(advance)
    with task.clock.stage("aggregate"), torch.no_grad():
        model = answer(shards)
    return Outcome(
        method=name,
        model=model,
        t_core_s=task.clock.seconds["update"],
        t_total_s=task.clock.total_s,
        n_trainable=shards.n_shards * sum(p.numel() for p in shards.params),
        details={
            "stages": dict(task.clock.seconds),
            "setup_s": setup.total_s,
            "setup_forward_equivalents": passes.forward_equivalents,
            "shards": shards.n_shards,
            "hit": hit,
            "restarted": tuple(shards.restarted),
            "changed": tuple(n for n, _ in model.named_parameters()),
            "storable": False,
        },
    )
