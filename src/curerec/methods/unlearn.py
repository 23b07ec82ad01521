"""The update loop that the two-loss methods share: gradients, rule, averaging, stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from curerec.circuits.adapter import weight_deltas
from curerec.circuits.path import part_of_the_way
from curerec.methods.losses import ForgetLoss, forget_loss, kl_to
from curerec.methods.rollback import roll_back
from curerec.methods.rules import Rules, named
from curerec.methods.stopping import Stopping, Watch
from curerec.methods.task import Task
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import answer_logits, device_of, score, to_batch
from curerec.recommender.tune import Averager, TuneConfig, batches, endless, optimise
from curerec.recommender.units import Units, units_of
from curerec.records import Circuit, Groups, Outcome

CLOSED = "the membership gap closed: deleted data is no longer told from unseen data"
PATH = (0.0, 0.5, 1.0)  # points between base and fine-tuned weights at which ``rewind`` takes residuals


class UnlearnConfig(Stopping):
    """The update loop. Every value is chosen on D_v, D_c and D_f."""

    forget_loss: ForgetLoss = "npo"
    beta: float = Field(0.5, gt=0, description="of NPO")
    balance: bool = Field(True, description="weigh yes and no so that forgetting does not shift P(yes)")
    retain_weight: float | None = Field(
        None,
        ge=0,
        description="w of the rules; none: |D_r| / |D_f|, the weights the two sets had in training",
    )
    lr: float = Field(1e-3, gt=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear"] = Field(
        "constant",
        description="constant: stops at the first look at which the gap is closed; linear: the rate falls to "
        "0 over max_steps, all of them are taken, and the forget loss rests while the gap is closed",
    )
    batch_size: int = Field(128, gt=0, description="prompts of D_f a step")
    retain_batch_size: int | None = Field(None, gt=0, description="prompts of D_r a step; none: as of D_f")
    max_steps: int = Field(60, gt=0)
    average: float = Field(0.9, ge=0, lt=1, description="decay of the average of the weights")


def retain_weight(task: Task, config: UnlearnConfig) -> float:
    """w of the rules.

    The default |D_r| / |D_f| makes the objective ``sum over D_f of the forget loss + sum over D_r of KL``:
    its minimum is, to second order, theta_o plus the influence of D_f (KL to theta_o has the Fisher matrix
    as its curvature), which is what leaving D_f out of training would have done.

    Source: Koh and Liang 2017 (influence functions); this project's own choice of w.
    """
    if config.retain_weight is not None:
        return config.retain_weight
    return len(task.retain) / len(task.forget)


@dataclass(frozen=True)
class Update:
    """What the loop did.

    Attributes:
        model: the unlearned copy.
        trace: one dict a look.
        stop_reason: why it ended.
        steps: optimiser steps taken.
        n_trainable: parameters that could change.
    """

    model: Any
    trace: tuple[dict[str, float], ...]
    stop_reason: str
    steps: int
    n_trainable: int


def run(task: Task, rules: Rules, config: UnlearnConfig, kept: np.ndarray | None = None) -> Update:
    """Move a copy of theta_o by the rules until the membership gap closes.

    Each step takes one batch of D_f and one of D_r, computes the two gradients apart, combines them unit by
    unit, and hands the result to the optimiser (so projection comes before Adam's scaling: AdamW rescales
    what was projected, which the record says). What is looked at, and handed back, is the running average of
    the weights: single iterates scatter in P(yes) by more than the forgetting that is to be measured.

    Args:
        task: the request.
        rules: roles of the units.
        config: losses, rate, stopping.
        kept: share of fine-tuning's change that each unit starts with, [n_units]; none: all of it.

    Source: METHOD sections 7 and 8.
    """
    with task.clock.stage("prepare"):
        watch = Watch(task, config)
        model = task.copy_of_model()
        device = device_of(model)
        forget, retain = task.forget_prompts, _Retain(task, config.retain_batch_size or config.batch_size)
        forget_logits = torch.from_numpy(task.forget_original).to(device)
        label = torch.from_numpy(forget.label.astype(np.int64)).to(device)
        weight = _weights(task, config, forget, forget_logits)
        if kept is not None:
            changed = (
                weight_deltas(model, task.base_state, rules.units) if task.base_state is not None else {}
            )
            roll_back(model, rules.units, changed, kept)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = [n for n in rules.trainable() if n in parameters]
    for p in parameters.values():
        p.requires_grad_(False)
    params = named(list(parameters.items()), names)
    for p in params:
        p.requires_grad_(True)
    rng = np.random.default_rng([task.seed, 61])
    forget_stream = endless(forget.lengths, min(config.batch_size, len(forget)), rng)
    average = Averager(params, config.average)
    trace: list[dict[str, float]] = [{"step": 0, **watch.first}]
    log: dict[str, float] = {}
    held = [p.detach().clone() for p in params]
    annealed, push = config.schedule == "linear", 1.0
    stop = f"the limit of {config.max_steps} steps was reached before the membership gap closed"

    def gradients(step: int) -> None:
        index = next(forget_stream)
        logits = answer_logits(model, *to_batch(forget, index, device), task.answers)
        loss_f = forget_loss(
            config.forget_loss,
            logits,
            label[index],
            forget_logits[index],
            beta=config.beta,
            weight=weight[index],
        )
        g_f = torch.autograd.grad(push * loss_f, params)
        batch, before = retain.next()
        ids, last = to_batch(batch, np.arange(len(batch)), device)
        loss_r = kl_to(answer_logits(model, ids, last, task.answers), before)
        g_r = torch.autograd.grad(loss_r, params)
        direction, seen = rules.combine(
            dict(zip(names, g_f, strict=True)), dict(zip(names, g_r, strict=True))
        )
        for name, p in zip(names, params, strict=True):
            p.grad = direction[name].to(p.dtype)
        log.update(_summary(loss_f, loss_r, seen))

    def after(step: int) -> bool:
        nonlocal stop, held, push
        average.update()
        advance(step, config.max_steps)
        if step % config.check_every and step != config.max_steps:
            return False
        iterate = [p.detach().clone() for p in params]
        average.store()
        seen = watch.look(model)
        trace.append({"step": step, **seen, **log})
        if annealed and step < config.max_steps:
            # Half-way the rate is high and utility lower than at the end: looks only steer the forget loss.
            push = 0.0 if watch.closed(seen) else 1.0
            _store(params, iterate)
            return False
        if watch.harmed(seen):
            stop = f"the utility guard: validation AUC fell by more than {config.max_auc_drop:g}"
            if not annealed:
                stop += "; the step before is kept"
                return True
        elif watch.closed(seen):
            stop = CLOSED
        held = [p.detach().clone() for p in params]
        _store(params, iterate)
        return stop == CLOSED

    with task.clock.stage("update") as advance:
        steps = optimise(
            params,
            config.max_steps,
            gradients,
            TuneConfig(
                lr=config.lr,
                optimizer=config.optimizer,
                schedule="linear" if annealed else "constant",
                warmup=0,
                max_grad_norm=float("inf"),
            ),
            after_step=after,
        )
        _store(params, held)
    for p in parameters.values():
        p.requires_grad_(True)
    return Update(model.eval(), tuple(trace), stop, steps, sum(p.numel() for p in params))


def outcome_of(
    task: Task,
    done: Update,
    config: UnlearnConfig,
    *,
    method: str,
    units: Units | None = None,
    groups: Groups | None = None,
    circuit: Circuit | None = None,
) -> Outcome:
    """What a method hands back once its loop has run.

    Args:
        task: its clock has the seconds.
        done: of :func:`run`.
        config: that ``run`` was given; the record says what was descended.
        method: name.
        units, groups, circuit: where the method has them.
    """
    details = {"steps": done.steps, "update": config, "stages": dict(task.clock.seconds)}
    return Outcome(
        method=method,
        model=done.model,
        t_core_s=task.clock.seconds["update"],
        t_total_s=task.clock.total_s,
        trace=done.trace,
        stop_reason=done.stop_reason,
        n_trainable=done.n_trainable,
        circuit=circuit,
        groups=groups,
        details=details if units is None else details | {"units": units},
    )


class _Retain:
    """Batches of D_r with theta_o's logits: a request must not pay for all the training data.

    Some batches are drawn at a time, encoded and scored together, and cut into batches of like length: little
    is padded, as in training.
    """

    def __init__(self, task: Task, size: int, *, ahead: int = 20) -> None:
        self.task, self.size, self.ahead = task, size, ahead
        self.rng = np.random.default_rng([task.seed, 62])
        self.order, self.at = self.rng.permutation(len(task.retain)), 0
        self.ready: list[tuple[Prompts, torch.Tensor]] = []

    def next(self) -> tuple[Prompts, torch.Tensor]:
        """Prompts of a batch, and answer logits of theta_o, [batch, 2]."""
        if not self.ready:
            if self.at + min(self.size, len(self.order)) > len(self.order):
                self.order, self.at = self.rng.permutation(len(self.task.retain)), 0
            index = self.order[self.at : self.at + self.ahead * self.size]
            self.at += len(index)
            prompts = self.task.encode(self.task.retain.take(index))
            model = self.task.original.model
            logits = torch.from_numpy(score(model, prompts, self.task.answers)).to(device_of(model))
            self.ready = [(prompts.take(b), logits[b]) for b in batches(prompts.lengths, self.size, self.rng)]
        return self.ready.pop()


def _weights(task: Task, config: UnlearnConfig, forget: Prompts, logits: torch.Tensor) -> torch.Tensor:
    """Weight of each forget example, [n].

    ``rewind``: its residual averaged over the base, the halfway and the fine-tuned weights; otherwise 1. With
    ``balance`` both answers get the same total push at the start; without it forgetting moves P(yes) towards
    the rarer answer, which is not what the users were remembered by.
    """
    label = torch.from_numpy(forget.label.astype(np.int64)).to(logits.device)

    def residual(answer_logits: torch.Tensor) -> torch.Tensor:
        return 1 - answer_logits.softmax(-1).gather(1, label[:, None])[:, 0]

    push = residual(logits)  # of the other losses' first step
    weight = torch.ones_like(push)
    if config.forget_loss == "rewind":
        model = task.original.model
        units = units_of(model, "projection")
        deltas = weight_deltas(model, task.base_state, units) if task.base_state is not None else {}
        push = push + residual(torch.from_numpy(task.forget_base).to(logits))
        for alpha in PATH[1:-1]:
            with part_of_the_way(model, deltas, alpha) as (halfway, _):
                earlier = torch.from_numpy(score(halfway, forget, task.answers)).to(logits.device)
            push = push + residual(earlier)
        weight = push = push / len(PATH)
    if config.balance:
        for answer in (0, 1):
            mine = label == answer
            if mine.any():
                weight[mine] = weight[mine] * 0.5 * push.sum() / push[mine].sum()
    return weight


def _store(params: list[torch.nn.Parameter], values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for p, v in zip(params, values, strict=True):
            p.copy_(v)


def _summary(loss_f: torch.Tensor, loss_r: torch.Tensor, seen: dict[str, torch.Tensor]) -> dict[str, float]:
    cos = seen["cos"]
    known = cos[~cos.isnan()]
    return {
        "forget_loss": float(loss_f.detach()),
        "retain_loss": float(loss_r.detach()),
        "cos_mean": float(known.mean()) if len(known) else float("nan"),
        "projected": float(seen["projected"].float().mean()),
    }
