"""E2URec: a forgetting teacher made of logits, followed by an adapter alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from pydantic import Field

from curerec.methods.descent import Descent, Log, frozen_logits, of_loss
from curerec.methods.loop import Batches, LoopConfig, descend, outcome
from curerec.methods.losses import kl_to
from curerec.methods.task import Task
from curerec.methods.teachers import TUNING, augmented, forgetting_teacher
from curerec.recommender.families import family_of
from curerec.recommender.lora import PREFIX
from curerec.recommender.tune import TuneConfig
from curerec.records import Outcome

SEARCH: dict[str, list[Any]] = {"lr": [3e-4, 1e-3], "alpha": [1.0, 2.0], "teacher.lr": [5e-5, 5e-4]}


class E2urecConfig(LoopConfig):
    """The loop, the teacher and the adapter."""

    added = (*LoopConfig.added, "trains")

    lr: float = Field(1e-3, gt=0)
    batch_size: int = Field(16, gt=0)
    alpha: float = Field(2.0, gt=0, description="of the forgetting teacher")
    retain_weight: float = Field(0.6, ge=0, le=1, description="of the retain losses in the second stage")
    forget_epochs: int = Field(1, ge=0, description="first stage: passes over D_f with the forget loss alone")
    epochs: int = Field(
        5, gt=0, description="second stage: passes over D_f, a batch of D_r beside each of D_f"
    )
    teacher: TuneConfig = TUNING
    trains: Literal["all"] | None = Field(
        None,
        description="of a fully fine-tuned model: all that fine-tuning changed, as the other methods; none: "
        "a new adapter on the query and value projections. A recommender with an adapter has that trained",
    )
    r: int = Field(16, gt=0, description="rank of the adapter that a fully fine-tuned model is given")
    lora_alpha: int = Field(32, gt=0)
    max_steps: int = Field(100_000, gt=0)
    check_every: int = Field(16, gt=0)


def e2urec(task: Task, config: E2urecConfig | None = None) -> Outcome:
    """An epoch towards the forgetting teacher on D_f, then ``.4 forget + .6 (L_r + KL(theta_o || theta))``.

    Args:
        task: the request.
        config: see :class:`E2urecConfig`.

    Source: Wang et al. 2024 (E2URec), arXiv 2403.03536, eq. 5 to 9, and its published scripts.
    """
    config = config or E2urecConfig()
    with task.clock.stage("teacher") as advance:
        tuned = augmented(task, config.teacher, progress=advance)
        model, names = adapter_alone(task, config)
    per_epoch = Batches(task, task.forget, config.batch_size, 0).per_epoch
    first = config.forget_epochs * per_epoch
    steps = min(config.max_steps, first + config.epochs * per_epoch)

    def forgetting(descent: Descent) -> torch.Tensor:
        batch = descent.forget.next()
        teacher = forgetting_teacher(
            descent.original(batch), frozen_logits(tuned, batch, task.answers), config.alpha
        )
        return kl_to(descent.logits(batch), teacher)

    def loss(descent: Descent, step: int) -> tuple[torch.Tensor, Log]:
        forget = None if descent.resting else forgetting(descent)
        if step < first and forget is not None:  # no look comes before that is over
            return forget, {"forget_loss": forget.detach()}
        other = descent.retain.next()
        logits = descent.logits(other)
        retain = F.cross_entropy(logits, other.label) + kl_to(logits, descent.held_to(other))
        if forget is None:
            return config.retain_weight * retain, {"retain_loss": retain.detach()}
        noted = {"forget_loss": forget.detach(), "retain_loss": retain.detach()}
        return (1 - config.retain_weight) * forget + config.retain_weight * retain, noted

    done = descend(
        task,
        config,
        of_loss(loss),
        model=model,
        names=names,
        steps=steps,
        # The first stage alone harms utility; the guard is asked once the second is under way.
        due=lambda step: step > first and (step - first) % config.check_every == 0,
    )
    if names is None:
        return outcome(task, "e2urec", done, adapter="own" if hasattr(model, "peft_config") else "none")
    with task.clock.stage("merge"):
        merged = done.model.merge_and_unload().requires_grad_(True).eval()
    changed = tuple(n.removeprefix(PREFIX).replace(".lora_A.default", "") for n in names if ".lora_A." in n)
    return outcome(task, "e2urec", replace(done, model=merged), adapter="new", changed=changed)


def adapter_alone(task: Task, config: E2urecConfig) -> tuple[Any, list[str] | None]:
    """The model whose adapter is to be trained, and its parameters (None: those that fine-tuning changed).

    A LoRA recommender's own adapter is taken; a fully fine-tuned one is given a new adapter on the query and
    value projections, to be merged afterwards, unless all of it is to be trained.
    """
    model = task.copy_of_model()
    if hasattr(model, "peft_config") or config.trains == "all":
        return model, None
    paths = family_of(model).projections
    wanted = [paths[p].path for p in ("q_proj", "v_proj") if p in paths]
    wanted = wanted or [next(iter(paths.values())).path]
    modules = dict(model.named_modules())
    targets = [n for n in modules if any(n.endswith(f".{p}") for p in wanted)]
    shape = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        fan_in_fan_out=type(modules[targets[0]]).__name__ == "Conv1D",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(task.seed)
        model = get_peft_model(model, shape).eval()
    return model, [n for n, _ in model.named_parameters() if ".lora_" in n]
