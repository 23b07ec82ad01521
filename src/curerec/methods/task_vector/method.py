"""Task arithmetic: learn D_f more, then go the other way."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field

from curerec.methods.loop import CLOSED, Update, free, outcome, tuned_names
from curerec.methods.stopping import Stopping, Watch
from curerec.methods.task import Task
from curerec.recommender.lora import factors_of, stacked, with_factors
from curerec.recommender.tune import TuneConfig, tune
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"tuning.lr": [1e-4, 3e-4, 1e-3], "tuning.epochs": [1.0, 3.0]}


class TaskVectorConfig(Stopping):
    """Tuning on D_f, and the line along which its change is undone."""

    tuning: TuneConfig = TuneConfig(epochs=1.0, batch_size=32, lr=3e-4)
    alphas: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0),
        min_length=1,
        description="tried in this order until the gap closes",
    )


def negated(original: Any, tuned: Any, alpha: float) -> Any:
    """``theta_o - alpha (theta_t - theta_o)`` as a new model.

    With LoRA the arithmetic is on the products B A (on the factors it would not be linear): the result's
    adapter joins the ranks of both, ``B = [(1 + alpha) B_o, -alpha B_t]``, ``A = [A_o; A_t]``, and is exact.

    Args:
        original, tuned: plain models, or PEFT models with adapters on the same base.
        alpha: of the task vector; 0 gives theta_o.

    Source: Ilharco et al. 2023, arXiv 2212.04089, section 2 (negation).
    """
    if hasattr(original, "peft_config"):
        return with_factors(original, stacked((1 + alpha, factors_of(original)), (-alpha, factors_of(tuned))))
    new = copy.deepcopy(original)
    other = dict(tuned.named_parameters())
    with torch.no_grad():
        for name, p in new.named_parameters():
            p.sub_(alpha * (other[name] - p))
    return new


def task_vector(task: Task, config: TaskVectorConfig | None = None) -> Outcome:
    """Fine-tune theta_o on D_f and step back by growing multiples of what that changed.

    Args:
        task: the request.
        config: see :class:`TaskVectorConfig`.

    Source: Ilharco et al. 2023, arXiv 2212.04089.
    """
    config = config or TaskVectorConfig()
    with task.clock.stage("prepare"):
        watch = Watch(task, config)
        tuned = task.copy_of_model()
        params = free(tuned, tuned_names(tuned))
    with task.clock.stage("update") as advance:
        tune(
            tuned,
            task.encode(task.forget),
            task.answers,
            config.tuning,
            seed=task.seed,
            runtime=task.runtime,
            progress=advance,
        )
        original = task.original.model
        kept, trace = 0.0, [{"step": 0, "alpha": 0.0, **watch.first}]
        stop = f"alpha {config.alphas[-1]:g} was reached before the membership gap closed"
        for k, alpha in enumerate(config.alphas):
            seen = watch.look(negated(original, tuned, alpha))
            trace.append({"step": k + 1, "alpha": alpha, **seen})
            if watch.harmed(seen):
                drop = f"validation AUC fell by more than {config.max_auc_drop:g}"
                stop = f"the utility guard: {drop}; the alpha before is kept"
                break
            kept = alpha
            if watch.closed(seen):
                stop = CLOSED
                break
        model = negated(original, tuned, kept)
    n = sum(p.numel() for p in params)
    done = Update(model.eval(), tuple(trace), stop, len(trace) - 1, n, target=watch.target)
    return outcome(task, "task_vector", done, alpha=kept)
