"""The update with two losses: a gradient of each, combined by a rule; steps and stopping are the loop's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field

from curerec.circuits.adapter import weight_deltas
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.loop import CLOSED, Log, LoopConfig, Update, free, store, walk
from curerec.methods.losses import ForgetLoss, kl_to
from curerec.methods.pace import Pace
from curerec.methods.rollback import roll_back
from curerec.methods.rules import Rules
from curerec.methods.stopping import Watch
from curerec.methods.task import Task
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import answer_logits, device_of, to_batch
from curerec.recommender.tune import batches, endless


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
    retain_labels: float = Field(
        0.0,
        ge=0,
        description="weight of the cross-entropy on D_r's answers beside the KL: what forgetting loosened "
        "of the fit to D_r is tightened again, as it is in a retrain",
    )
    forget_every: int | None = Field(
        None,
        gt=0,
        description="steps between gradients of the forget loss over all of D_f; none: a batch of D_f a step",
    )
    forget_size: int = Field(2000, gt=0, description="with forget_every: at most so many of D_f, drawn anew")
    push: float = Field(1.0, gt=0, description="weight of the forget loss at the start")
    paced: bool = Field(
        False,
        description="a look on the way sets the push so that the steps left close the gap at the pace so "
        "far (``pace.py``); else it rests the push while the gap is closed",
    )
    members: int = Field(
        1,
        gt=0,
        description="updates from the same start on other batches of D_r, each of max_steps, whose weights "
        "are averaged: much of what a single one leaves is the scatter of its batches",
    )


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


def run(
    task: Task,
    rules: Rules,
    config: UnlearnConfig,
    kept: np.ndarray | None = None,
) -> Update:
    """Move a copy of theta_o by the rules until the membership gap closes.

    Each step combines a gradient of the forget loss and one of the retain loss unit by unit, and hands the
    result to the optimiser (so projection comes before Adam's scaling: AdamW rescales what was projected,
    which the record says). The retain gradient is a batch's; the forget gradient a batch's, or with
    ``forget_every`` that of all of D_f, taken anew every so many steps. What is looked at, and handed back,
    is the running average of the weights: single iterates scatter in P(yes) by more than the forgetting to
    be measured. With ``members`` several updates are averaged once more.

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
        objective = ForgetObjective.of(task, config)
        retain = _Retain(task, config.retain_batch_size or config.batch_size)
        if kept is not None:
            changed = (
                weight_deltas(model, task.base_state, rules.units) if task.base_state is not None else {}
            )
            roll_back(model, rules.units, changed, kept)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = [n for n in rules.trainable() if n in parameters]
    params = free(model, names)
    start = [p.detach().clone() for p in params]
    first: tuple[list[torch.Tensor], float] | None = None
    ends: list[list[torch.Tensor]] = []
    done: list[Update] = []
    for member in range(config.members):
        store(params, start)
        pushing = _Pushing(task, config, objective, params, watch, member, first)
        gradients = pushing.with_retain(model, names, rules, retain)
        done.append(walk(watch, config, model, params, gradients, config.max_steps, steer=pushing.steer))
        first = pushing.first
        ends.append([p.detach().clone() for p in params])
    model.requires_grad_(True)
    if config.members == 1:
        return done[0]
    with task.clock.stage("update"):
        store(params, [torch.stack(each).mean(0) for each in zip(*ends, strict=True)])
        seen = watch.look(model)
    return averaged(done, watch, seen)


def averaged(done: Sequence[Update], watch: Watch, seen: Log) -> Update:
    """What several updates did whose weights were averaged: the first one's looks, and that at the average.

    Source: Wortsman et al. 2022, arXiv 2203.05482 (model soups), with members that share their start.
    """
    steps = sum(one.steps for one in done)
    stop = f"after {len(done)} updates of {done[0].steps} steps the gap of their average had not closed"
    if watch.harmed(seen):
        stop = f"the utility guard: validation AUC fell by more than {watch.config.max_auc_drop:g}"
    elif watch.closed(seen):
        stop = CLOSED
    trace = (*done[0].trace, {**done[0].trace[-1], **seen, "step": steps})
    return replace(done[0], trace=trace, stop_reason=stop, steps=steps)


class _Pushing:
    """The forget side of one update: its gradients, and how hard they push.

    Args:
        task: the request.
        config: losses.
        objective: of D_f.
        params: that may change.
        watch: at the membership gap.
        member: of the updates that are averaged; each has its own batches.
        first: the gradient at the start over all of D_f, if another member has taken it.
    """

    def __init__(
        self,
        task: Task,
        config: UnlearnConfig,
        objective: ForgetObjective,
        params: list[torch.nn.Parameter],
        watch: Watch,
        member: int,
        first: tuple[list[torch.Tensor], float] | None,
    ) -> None:
        self.config, self.objective, self.params, self.watch = config, objective, params, watch
        self.n = len(objective.prompts)
        self.rng = np.random.default_rng([task.seed, 61] if not member else [task.seed, 61, member])
        self.stream = endless(objective.prompts.lengths, min(config.batch_size, self.n), self.rng)
        self.pace = Pace(watch, config.max_steps, config.push) if config.paced else None
        self.push = config.push
        self.first = first
        self.taken = first

    def steer(self, point: Log) -> None:
        """Set the push by what a look on the way found."""
        if self.pace:
            self.push = self.pace.push(point)
        else:
            self.push = 0.0 if self.watch.closed(point) else self.config.push

    def gradient(self, model: Any, step: int) -> tuple[list[torch.Tensor], float]:
        """The forget gradient, and the loss that it is of."""
        every = self.config.forget_every
        if every is None:
            loss = self.objective.loss(model, next(self.stream))
            return list(torch.autograd.grad(loss, self.params)), float(loss.detach())
        if self.taken is None or (step and step % every == 0):
            size = min(self.n, self.config.forget_size)
            index = None if size == self.n else self.rng.choice(self.n, size, replace=False)
            self.taken = self.objective.gradient(model, self.params, index)
            self.first = self.first or (self.taken if index is None else None)
        return self.taken

    def with_retain(
        self, model: Any, names: list[str], rules: Rules, retain: _Retain
    ) -> Callable[[int], Log]:
        """What fills ``.grad`` in each step: both gradients, combined by the rules."""
        config, answers = self.config, retain.task.answers
        device = device_of(model)

        def gradients(step: int) -> Log:
            g_f, loss_f = self.gradient(model, step)
            batch, before = retain.next()
            ids, last = to_batch(batch, np.arange(len(batch)), device)
            logits = answer_logits(model, ids, last, answers, lean=True)
            loss_r = kl_to(logits, before)
            if config.retain_labels:
                label = torch.from_numpy(batch.label.astype(np.int64)).to(device)
                loss_r = loss_r + config.retain_labels * torch.nn.functional.cross_entropy(logits, label)
            g_r = torch.autograd.grad(loss_r, self.params)
            pushed = {name: self.push * g for name, g in zip(names, g_f, strict=True)}
            direction, seen = rules.combine(pushed, dict(zip(names, g_r, strict=True)))
            for name, p in zip(names, self.params, strict=True):
                p.grad = direction[name].to(p.dtype)
            return {**_summary(loss_f, loss_r, seen), "push": self.push}

        return gradients


class _Retain:
    """Batches of D_r with theta_o's logits: a request must not pay for all the training data.

    Some batches are drawn at a time, encoded and, where their answers are not stored, scored together, and
    cut into batches of like length: little is padded, as in training.
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
            part = self.task.retain.take(index)
            prompts = self.task.encode(part)
            logits = torch.from_numpy(self.task.original_logits(part, prompts))
            logits = logits.to(device_of(self.task.original.model))
            self.ready = [(prompts.take(b), logits[b]) for b in batches(prompts.lengths, self.size, self.rng)]
        return self.ready.pop()


def _summary(loss_f: float, loss_r: torch.Tensor, seen: dict[str, torch.Tensor]) -> Log:
    cos = seen["cos"]
    known = cos[~cos.isnan()]
    return {
        "forget_loss": loss_f,
        "retain_loss": float(loss_r.detach()),
        "cos_mean": float(known.mean()) if len(known) else float("nan"),
        "projected": float(seen["projected"].float().mean()),
    }
