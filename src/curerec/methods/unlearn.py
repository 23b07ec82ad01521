"""The update with two losses: a gradient of each, combined by a rule; steps and stopping are the loop's."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from curerec.config import Strict
from curerec.methods.batches import RetainBatches
from curerec.methods.combining import Combining
from curerec.methods.descent import Log
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.loop import LoopConfig, Update, free, walk
from curerec.methods.losses import ForgetLoss, kl_to
from curerec.methods.pace import Pace, looked_at
from curerec.methods.rollback import TakenBack, rolled_back
from curerec.methods.rules import Masks, Rules
from curerec.methods.stopping import Watch
from curerec.methods.task import Task
from curerec.methods.unseen import Unseen
from curerec.recommender import parallel
from curerec.recommender.copies import free_tuned
from curerec.recommender.fitting import prompts_that_fit
from curerec.recommender.score import answer_logits, device_of, on, to_batch
from curerec.recommender.tune import endless

#: What a request takes at the least where small ones take fewer (``all_steps_from``).
LEAST_STEPS = 15

#: Of D_c and D_v small requests look at so many times D_f, and at so many at the least. The error of a
#: membership AUC is that of its smaller set; more than four times D_f take less than an eighth off it.
LOOK_RATIO, LEAST_LOOK = 4, 300

#: The second of each is what no setting means, too: a small request can have it where others have the first.
PaceFrom = Literal["start", "original"]
Looks = Literal["way", "steps"]


class SmallRequests(Strict):
    """What differs for small requests.

    AdamW's steps are as long whatever is to be forgotten, so for few examples they go too far between two
    looks; and a gradient of few examples costs little to take anew. What they are remembered by lies in fewer
    weights, which may go back further.
    """

    added = ("rolled_back", "anchor", "max_steps", "push", "saliency", "pace_from", "looks")

    below: float = Field(..., gt=0, lt=1, description="share of the training examples that are small")
    lr: float | None = Field(None, gt=0, description="none: as for others")
    forget_every: int | None = Field(None, gt=0, description="none: as for others")
    check_every: int | None = Field(None, gt=0, description="none: as for others")
    open_gap: float | None = Field(None, ge=0, lt=1, description="none: as for others")
    rolled_back: float | None = Field(
        None, gt=0, le=1, description="of methods that choose weights to take back; none: as for others"
    )
    saliency: float | None = Field(
        None, gt=0, le=1, description="of methods that choose weights to move; none: as for others"
    )
    anchor: float | None = Field(None, ge=0, lt=1, description="none: as for others")
    max_steps: int | None = Field(None, gt=0, description="none: as for others")
    push: float | None = Field(None, gt=0, description="none: as for others")
    pace_from: PaceFrom | None = Field(None, description="none: as for others")
    looks: Looks | None = Field(None, description="none: as for others")


class UnlearnConfig(LoopConfig):
    """The loop and its two losses. What a request finds by itself, it finds on D_v, D_c and D_f."""

    added = (
        *LoopConfig.added,
        *("open_gap", "all_steps_from", "alpha", "projection", "small", "changed_prompts", "anchor"),
        *("pace_from", "looks"),
    )

    forget_loss: ForgetLoss = Field(
        "npo",
        description="npo, grad_ascent, rewind (losses.py); label_free, teacher, calibrated: KL to answers to "
        "aim for (teachers.py)",
    )
    beta: float = Field(0.5, gt=0, description="of NPO")
    alpha: float | None = Field(None, gt=0, description="strength of the loss teacher; none: 2")
    balance: bool = Field(
        True,
        description="weigh yes and no so that forgetting does not shift P(yes); losses that aim for answers "
        "have no weights",
    )
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
    changed_prompts: Literal["as_trained"] | None = Field(
        None,
        description="prompts of D_r whose history the request changed are held to what theta_o answered to "
        "them as it was trained on them: a retrain remembers them as they are now as well as theta_o does as "
        "they were. None: to what it answers to them as they are now",
    )
    forget_every: int | None = Field(
        None,
        gt=0,
        description="steps between gradients of the forget loss over all of D_f; none: a batch of D_f a step",
    )
    forget_size: int = Field(2000, gt=0, description="with forget_every: at most so many of D_f, drawn anew")
    push: float = Field(1.0, gt=0, description="weight of the forget loss at the start")
    open_gap: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="of methods that take weights back (``kept``): share of the membership gap that this may "
        "leave; it goes only so far of the way to what ``kept`` allows. None: all of it",
    )
    projection: Literal["preconditioned"] | None = Field(
        None,
        description="where two gradients conflict is asked, and what is taken out reckoned, of what AdamW "
        "makes of them; none: of the gradients themselves, which AdamW then rescales",
    )
    anchor: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the way back to where the steps began that each step draws the weights, at the "
        "full rate, and less as it falls: what batches of D_r scatter the weights by, and no step repeats, "
        "fades. None: nothing",
    )
    paced: bool = Field(
        False,
        description="a look on the way sets the push so that the steps left close the gap at the pace so "
        "far (``pace.py``); else it rests the push while the gap is closed",
    )
    pace_from: PaceFrom | None = Field(
        None,
        description="start: the pace before the first look is reckoned from what the steps begin with. "
        "original, or None: from theta_o, so what went back before the first step counts as pace",
    )
    looks: Looks | None = Field(
        None,
        description="way: as many looks as one every check_every steps makes, at equal parts of the way, "
        "which a falling rate covers the faster the earlier: after 5, 11, 18, 25, 36 and 60 of 60 steps for "
        "six. steps, or None: at equal numbers of steps",
    )
    all_steps_from: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=f"share of the training examples that a request must be for all of max_steps; a smaller "
        f"one takes them in proportion, {LEAST_STEPS} at the least, and looks at {LOOK_RATIO} times as many "
        f"of D_c and D_v as of D_f, {LEAST_LOOK} at the least. None: all requests take and look at all",
    )

    small: SmallRequests | None = Field(None, description="what differs for small requests; none: nothing")

    def idle(self) -> str | None:
        if self.projection is not None and self.optimizer != "adamw":
            return "projection is of AdamW's steps: leave it null, or use optimizer adamw"
        if self.paced and self.schedule == "constant":
            return "paced is of a rate that falls: leave it false, or use schedule linear"
        small = self.small
        if "start" in (self.pace_from, small and small.pace_from) and not self.paced:
            return "pace_from: start is of a push that is paced: leave it null, or set paced"
        if "way" in (self.looks, small and small.looks) and self.schedule == "constant":
            return "looks: way is of a rate that falls: leave it null, or use schedule linear"
        if self.alpha is not None and self.forget_loss != "teacher":
            return "alpha is of forget_loss teacher: leave it null, or use that loss"
        if self.tolerance and (self.paced or self.open_gap is not None):
            return "paced and open_gap go by the target itself: leave tolerance 0, or both of them out"
        return super().idle()

    def small_for(self, n_forget: int, n_retain: int) -> SmallRequests | None:
        """What differs for a request of this size; None where it is not small."""
        is_small = self.small is not None and n_forget / (n_forget + n_retain) < self.small.below
        return self.small if is_small else None

    def for_request(self, n_forget: int, n_retain: int) -> UnlearnConfig:
        """The same as a request of this size takes it: gentler, and with fewer steps and looks as often.

        Example:
            >>> small = UnlearnConfig(max_steps=60, check_every=20, check_size=1500, all_steps_from=0.01)
            >>> [small.for_request(n, 100_000 - n).max_steps for n in (100, 500, 1000, 10_000)]
            [15, 30, 60, 60]
            >>> [small.for_request(n, 100_000 - n).check_size for n in (50, 100, 500, 10_000)]
            [300, 400, 1500, 1500]
            >>> small.for_request(500, 99_500).check_every
            10
            >>> gentle = UnlearnConfig(lr=8e-4, small=SmallRequests(below=0.03, lr=4e-4))
            >>> [gentle.for_request(n, 1000 - n).lr for n in (10, 100)]
            [0.0004, 0.0008]
        """
        share = n_forget / (n_forget + n_retain)
        if small := self.small_for(n_forget, n_retain):
            values = small.model_dump(exclude={"below", "rolled_back", "saliency"}, exclude_none=True)
            return self.model_copy(update={**values, "small": None}).for_request(n_forget, n_retain)
        if self.all_steps_from is None:
            return self
        part = min(1.0, share / self.all_steps_from)
        steps = min(self.max_steps, max(LEAST_STEPS, round(part * self.max_steps)))
        every = max(1, round(self.check_every * steps / self.max_steps))
        size = min(self.check_size, max(LEAST_LOOK, LOOK_RATIO * n_forget)) if part < 1 else self.check_size
        return self.model_copy(update={"max_steps": steps, "check_every": every, "check_size": size})


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
    rolled: Masks | None = None,
    taken_back: TakenBack | None = None,
    watch: Watch | None = None,
) -> Update:
    """Move a copy of theta_o by the rules until the membership gap closes.

    Each step combines a gradient of the forget loss and one of the retain loss unit by unit, and hands the
    result to the optimiser (so projection comes before Adam's scaling: AdamW rescales what was projected;
    with ``projection: preconditioned`` conflict is a matter of the scaled gradients; the record has the
    configuration). The retain gradient is a batch's; the forget gradient a batch's, or with
    ``forget_every`` that of all of D_f, taken anew every so many steps. What is looked at, and handed back,
    is the running average of the weights: single iterates scatter in P(yes) by more than the forgetting to
    be measured.

    Args:
        task: the request.
        rules: roles of the units.
        config: losses, rate, stopping.
        kept: share of fine-tuning's change that each unit starts with, [n_units]; none: all of it.
        rolled: the weights that start so, by parameter name, in units that may change; none: those that may
            move.
        taken_back: what D_f wrote, of which a part is taken off instead; with ``kept``.
        watch: of an update of the same request with the same looks, to be used again; None: a new one.

    Source: METHOD sections 7 and 8.
    """
    config = config.for_request(len(task.forget), len(task.retain))
    with task.clock.stage("prepare", told=watch is None):
        watch = watch or Watch(task, config)
        device = device_of(task.original.model)
        objective = ForgetObjective.of(task, config)
        retain = RetainBatches(
            task, config.retain_batch_size or config.batch_size, as_trained=config.changed_prompts is not None
        )
        unseen = Unseen.of(task) if config.unseen_tokens else None
        if kept is None:
            model, depth = task.copy_of_model(), None
            if unseen:
                unseen.put_back(model)
        else:
            model, depth = rolled_back(task, rules, kept, rolled, watch, config.open_gap, unseen, taken_back)
        start = watch.membership(model) if config.pace_from == "start" else None
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = [n for n in rules.trainable() if n in parameters]
    params = free(model, names)
    n = len(objective.prompts)
    rng = np.random.default_rng([task.seed, 61])
    stream = endless(objective.prompts.lengths, min(config.batch_size, n), rng)
    pace = Pace(watch, config.max_steps, config.push, start) if config.paced else None
    taken: tuple[list[torch.Tensor], float] | None = None
    push = config.push
    combining = Combining(rules, config, dict(zip(names, params, strict=True)), unseen)

    def steer(point: Log) -> None:
        nonlocal push
        push = pace.push(point) if pace else 0.0 if watch.closed(point) else config.push

    def of_forget(step: int) -> tuple[list[torch.Tensor], float | torch.Tensor]:
        """The forget gradient, and the loss that it is of."""
        nonlocal taken
        if config.forget_every is None:
            drawn = next(stream)
            few = prompts_that_fit(model, int(task.forget_prompts.lengths.max()), task.runtime)
            grads, loss = parallel.gradient(
                lambda k: objective.loss(model, drawn[k]), len(drawn), params, at_a_time=few
            )
            return grads, loss
        if taken is None or step % config.forget_every == 0:
            size = min(n, config.forget_size)
            index = None if size == n else rng.choice(n, size, replace=False)
            taken = objective.gradient(model, params, index)
        return taken

    def gradients(step: int) -> Log:
        g_f, loss_f = of_forget(step)
        batch, before = retain.next()

        def loss_of(k: np.ndarray) -> torch.Tensor:
            ids, last = to_batch(batch, k, device)
            logits = answer_logits(model, ids, last, task.answers, lean=True, runtime=task.runtime)
            loss = kl_to(logits, before.index_select(0, on(device, k)))
            if config.retain_labels:
                label = on(device, batch.label[k].astype(np.int64))
                loss = loss + config.retain_labels * torch.nn.functional.cross_entropy(logits, label)
            return loss

        few = prompts_that_fit(model, int(batch.lengths.max()), task.runtime)
        g_r, loss_r = parallel.gradient(loss_of, len(batch), params, at_a_time=few)
        seen = combining.combine(g_f, g_r, push)
        return {**_summary(loss_f, loss_r, seen), "push": push}

    @torch.no_grad()
    def undo() -> None:
        nonlocal depth
        depth = None
        for p, q in zip(model.parameters(), task.original.model.parameters(), strict=True):
            if p is not q:  # what lies under an adapter is shared
                p.copy_(q)

    done = walk(
        watch,
        config,
        model,
        params,
        gradients,
        config.max_steps,
        due=looked_at(config.max_steps, config.check_every).__contains__ if config.looks == "way" else None,
        steer=steer,
        anchor=config.anchor or 0.0,
        moved=combining.moved,
        unseen=unseen,
        undo=undo if unseen or kept is not None else None,
    )
    back = None if unseen is None else (unseen.name, unseen.rows, unseen.base.shape[1])
    gone = None if kept is None else rolled
    if gone is not None and taken_back is not None:
        gone = {name: mask | taken_back.masks.get(name, False) for name, mask in gone.items()}
    movable = rules.n_movable(dict(zip(names, params, strict=True)), gone, back)
    free_tuned(model)
    conflicts = combining.conflicts.found()
    return replace(done, n_trainable=movable, depth=depth, conflicts=conflicts)


def _summary(loss_f: float | torch.Tensor, loss_r: torch.Tensor, seen: dict[str, torch.Tensor]) -> Log:
    """What a step notes; left on the device, since reading it there would make the host wait in each step."""
    projected = seen["projected"].float()
    able = seen.get("able", torch.ones_like(projected))  # gradient surgery knows one unit, which moves
    return {
        "forget_loss": loss_f,
        "retain_loss": loss_r.detach(),
        "cos_mean": seen["cos"].nanmean(),
        "projected": projected.sum() / able.sum(),
    }
