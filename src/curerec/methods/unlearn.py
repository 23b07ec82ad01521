"""The update with two losses: a gradient of each, combined by a rule; steps and stopping are the loop's."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from curerec.circuits.adapter import weight_deltas
from curerec.circuits.path import part_of_the_way
from curerec.methods.loop import Log, LoopConfig, Update, free, walk
from curerec.methods.losses import ForgetLoss, forget_loss, kl_to
from curerec.methods.rollback import roll_back
from curerec.methods.rules import Rules
from curerec.methods.stopping import Watch
from curerec.methods.task import Task
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import answer_logits, device_of, score, to_batch
from curerec.recommender.tune import batches, endless
from curerec.recommender.units import units_of

PATH = (0.0, 0.5, 1.0)  # points between base and fine-tuned weights at which ``rewind`` takes residuals


class UnlearnConfig(LoopConfig):
    """The loop and its two losses. Every value is chosen on D_v, D_c and D_f."""

    forget_loss: ForgetLoss = "npo"
    beta: float = Field(0.5, gt=0, description="of NPO")
    balance: bool = Field(True, description="weigh yes and no so that forgetting does not shift P(yes)")
    retain_weight: float | None = Field(
        None,
        ge=0,
        description="w of the rules; none: |D_r| / |D_f|, the weights the two sets had in training",
    )
    retain_batch_size: int | None = Field(None, gt=0, description="prompts of D_r a step; none: as of D_f")


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
    params = free(model, names)
    rng = np.random.default_rng([task.seed, 61])
    forget_stream = endless(forget.lengths, min(config.batch_size, len(forget)), rng)
    push = 1.0

    def steer(closed: bool) -> None:
        nonlocal push
        push = 0.0 if closed else 1.0

    def gradients(step: int) -> Log:
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
        return _summary(loss_f, loss_r, seen)

    done = walk(watch, config, model, params, gradients, config.max_steps, steer=steer)
    model.requires_grad_(True)
    return done


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


def _summary(loss_f: torch.Tensor, loss_r: torch.Tensor, seen: dict[str, torch.Tensor]) -> dict[str, float]:
    cos = seen["cos"]
    known = cos[~cos.isnan()]
    return {
        "forget_loss": float(loss_f.detach()),
        "retain_loss": float(loss_r.detach()),
        "cos_mean": float(known.mean()) if len(known) else float("nan"),
        "projected": float(seen["projected"].float().mean()),
    }
