"""The one loop that updates by steps: batches, watching, averaging, schedule, stopping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from curerec.errors import ModelError
from curerec.methods.batches import Batches
from curerec.methods.descent import Descent, Direction, Log
from curerec.methods.rules import Rules, uniform
from curerec.methods.stopping import Stopping, Watch
from curerec.methods.task import Task
from curerec.methods.unseen import Unseen
from curerec.recommender import parallel
from curerec.recommender.fused import fused_activations
from curerec.recommender.memory import keep_freed
from curerec.recommender.score import device_of
from curerec.recommender.tune import Averager, TuneConfig, optimise
from curerec.recommender.units import units_of
from curerec.records import Circuit, Conflicts, Groups, Outcome

CLOSED = (
    "the membership gap closed: of what was looked at, deleted data is told apart no better than aimed for"
)


class LoopConfig(Stopping):
    """Steps and stopping. What a request finds by itself, it finds on D_v, D_c and D_f."""

    added: ClassVar[tuple[str, ...]] = ("unseen_tokens",)

    lr: float = Field(1e-3, gt=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear"] = Field(
        "constant",
        description="constant: stops at the first look at which the gap is closed; linear: the rate falls to "
        "0 over max_steps and all of them are taken; an update with two losses rests its forget loss while "
        "the gap is closed",
    )
    damping: float = Field(
        0.0,
        ge=0,
        description="AdamW's epsilon as a multiple of the root mean square of the first gradient: above 0, "
        "parameters with little gradient take little steps instead of steps of the rate's size",
    )
    batch_size: int = Field(128, gt=0, description="prompts of D_f, and of D_r, a step")
    max_steps: int = Field(60, gt=0)
    average: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="decay of the average of the weights, at the most: after n steps it is "
        "(1 + n) / (10 + n), which reaches .9 after 80",
    )
    unseen_tokens: Literal["base"] | None = Field(
        None,
        description="embeddings of tokens that no prompt of D_r shows go back to the base's and stay there, "
        "as they do in a retrain (``unseen.py``); none: they are weights like others. An update that leaves "
        "the embedding alone (an adapter's, a memory's beside the weights) puts none back",
    )

    def idle(self) -> str | None:
        if self.damping and self.optimizer != "adamw":
            return "damping is AdamW's epsilon: leave it 0, or use optimizer adamw"
        return None


@dataclass(frozen=True)
class Update:
    """What the loop did.

    Attributes:
        model: the unlearned copy.
        trace: one dict a look.
        stop_reason: why it ended.
        steps: optimiser steps taken.
        n_trainable: parameters that could change.
        config: of the loop; None where a method takes no steps.
        depth: part of the way back to what ``kept`` allowed that units went before the first step; None where
            none did.
        target: membership AUC that the update aimed for; None where a method looks at none.
        n_unseen: tokens whose embeddings went back to the base's, since no prompt of D_r shows them; None
            where that was not asked for.
        conflicts: what each step did to each module; None where a method has no rules by unit.
        watch: what looked.
    """

    model: Any
    trace: tuple[dict[str, float], ...]
    stop_reason: str
    steps: int
    n_trainable: int
    config: LoopConfig | None = None
    depth: float | None = None
    target: float | None = None
    n_unseen: int | None = None
    conflicts: Conflicts | None = None
    watch: Watch | None = None


def tuned_names(model: Any) -> list[str]:
    """Names of the parameters that fine-tuning changed: all of a plain model, or the adapter's."""
    units = units_of(model, "projection")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [n for n in Rules(units, uniform(units, device_of(model))).trainable() if n in parameters]


def free(model: Any, names: Sequence[str]) -> list[torch.nn.Parameter]:
    """Freeze a model but for the named parameters, and return these in order."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    model.requires_grad_(False)
    out = [parameters[n] for n in names]
    for p in out:
        p.requires_grad_(True)
    return out


def descend(
    task: Task,
    config: LoopConfig,
    direction: Direction,
    *,
    model: Any = None,
    names: Sequence[str] | None = None,
    steps: int | None = None,
    due: Callable[[int], bool] | None = None,
    order: Callable[[np.random.Generator], np.ndarray] | None = None,
    momentum: float = 0.9,
    before_look: Callable[[], None] | None = None,
) -> Update:
    """Descend a direction from theta_o until the membership gap closes; see :func:`walk`.

    Args:
        task: the request.
        config: rate and stopping.
        direction: of each step.
        model: what to change; None: a copy of theta_o.
        names: parameters that may change; None: all that fine-tuning changed.
        steps: at most this many instead of ``config.max_steps``.
        due: given the number of steps done, whether to look; None: every ``config.check_every``.
        order: of D_f's examples in an epoch.
        momentum: of SGD.
        before_look: called when the average is in place, before a look and at the end.

    Source: METHOD section 8 (the stopping rule).
    """
    total = steps or config.max_steps
    with task.clock.stage("prepare"):
        watch = Watch(task, config)
        model = task.copy_of_model() if model is None else model
        names = tuned_names(model) if names is None else list(names)
        params = free(model, names)
        unseen = Unseen.of(task) if config.unseen_tokens else None
        if unseen and unseen.name not in names:
            unseen = None
        forget = Batches(task, task.forget, config.batch_size, 61, order=order)
        retain = Batches(task, task.retain, config.batch_size, 62)
        descent = Descent(task, model, names, params, forget, retain, unseen)

    def gradients(step: int) -> Log:
        found, noted = direction(descent, step)
        # Also of what was not made by ``Descent.grad``, which holds them since rules read lengths of sides.
        for p, g in zip(params, descent.held(found), strict=True):
            p.grad = g.to(p.dtype)
        return noted

    def steer(point: Log) -> None:
        descent.resting = watch.closed(point)

    return walk(
        watch, config, model, params, gradients, total,
        due=due, steer=steer, momentum=momentum, before_look=before_look, unseen=unseen,
        undo=unseen.kept_of(model) if unseen else None,
    )  # fmt: skip


def walk(
    watch: Watch,
    config: LoopConfig,
    model: Any,
    params: list[torch.nn.Parameter],
    gradients: Callable[[int], Log],
    total: int,
    *,
    due: Callable[[int], bool] | None = None,
    steer: Callable[[Log], None] | None = None,
    momentum: float = 0.9,
    anchor: float = 0.0,
    before_look: Callable[[], None] | None = None,
    moved: Callable[[], None] | None = None,
    unseen: Unseen | None = None,
    undo: Callable[[], None] | None = None,
) -> Update:
    """Take steps, look, and keep the running average of the weights.

    With a constant rate the first look at which the gap is closed ends the loop, and one that finds utility
    harmed ends it with the average of the look before; the look before the first is at theta_o, whatever the
    steps began with. With a falling rate looks on the way only steer, since
    the rate is high there and utility lower than at the end; harm that is left at the end is said, and kept.
    Several processes look at the first one's weights and go on from there.

    Args:
        watch: at D_f, D_c and D_v.
        config: rate, schedule, averaging.
        model: what changes.
        params: of it, that may change.
        gradients: given the number of steps done, fills ``.grad`` of the parameters and says what to note.
        total: at most so many steps.
        due: given the number of steps done, whether to look; None: every ``config.check_every``.
        steer: given what looks on the way found; with a falling rate only.
        momentum: of SGD.
        anchor: how far each step draws the weights back to where the loop began (:func:`optimise`).
        before_look: called when the average is in place, before a look and at the end.
        moved: called after each step, with its weights in place.
        unseen: rows that begin where the base has them; ``gradients`` leaves them there. None: none.
        undo: makes the model theta_o again, where the steps begin elsewhere; None: they begin there.

    Raises:
        ModelError: no parameter may change.

    Source: METHOD section 8; the falling rate is this project's own.
    """
    if not params:
        raise ModelError(
            "there is no weight that may change, so nothing can be forgotten",
            where="unlearn",
            mend="Let more units take part (scope, tau, certain or saliency of the method)",
        )
    if params[0].device.type == "cpu":
        keep_freed()
    if unseen:
        unseen.put_back(model)
    average = Averager(params, config.average)
    trace: list[Log] = [{"step": 0, **watch.first}]
    log: Log = {}
    kept = [p.detach().clone() for p in params]
    annealed, undone = config.schedule == "linear", False
    stop = f"the limit of {total} steps was reached before the membership gap closed"

    def step_of(step: int) -> None:
        log.update(gradients(step))

    def after(step: int) -> bool:
        nonlocal stop, kept, undone
        if moved:
            moved()
        average.update()
        advance(step, total)
        wanted = due(step) if due else step % config.check_every == 0
        if not wanted and step != total:
            return False
        parallel.same([*params, *average.mean])  # what steps taken process by process have made of them
        iterate = [p.detach().clone() for p in params]
        average.store()
        if before_look:
            before_look()
        seen = watch.look(model)
        trace.append({"step": step, **seen, **{key: float(value) for key, value in log.items()}})
        if annealed and step < total:
            if steer:
                steer(trace[-1])
            store(params, iterate)
            return False
        if watch.harmed(seen):
            stop = f"validation AUC fell by more than {config.max_auc_drop:g}"
            if not annealed:
                first = len(trace) == 2
                undone = undo is not None and first  # what the steps began with was never looked at
                before = "what the steps began with" if first else "the step before"
                left = "the recommender is left as it was" if undone else f"{before} is kept"
                stop = f"the utility guard: {stop}; {left}"
                return True
            stop += f"; all {total} steps were taken all the same"
        elif watch.closed(seen):
            stop = CLOSED
        kept = [p.detach().clone() for p in params]
        store(params, iterate)
        return stop == CLOSED

    with watch.task.clock.stage("update") as advance, fused_activations(model):
        done = optimise(
            params,
            total,
            step_of,
            tuning_of(config),
            after_step=after,
            momentum=momentum,
            damping=config.damping,
            anchor=anchor,
        )
        store(params, kept)
        if undone and undo:
            undo()
        parallel.same(params)
        if before_look:
            before_look()
    return Update(
        model.eval(),
        tuple(trace),
        stop,
        done,
        n_trainable=sum(p.numel() for p in params),
        config=config,
        target=watch.target,
        n_unseen=None if config.unseen_tokens is None else len(unseen.rows) if unseen and not undone else 0,
        watch=watch,
    )


def tuning_of(config: LoopConfig) -> TuneConfig:
    """Rate and schedule as :func:`curerec.recommender.tune.optimise` takes them; nothing is clipped."""
    return TuneConfig(
        lr=config.lr,
        optimizer=config.optimizer,
        schedule=config.schedule,
        warmup=0,
        max_grad_norm=float("inf"),
    )


def store(params: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    """Put values into parameters."""
    with torch.no_grad():
        for p, v in zip(params, values, strict=True):
            p.copy_(v)


def outcome(
    task: Task,
    method: str,
    done: Update,
    *,
    groups: Groups | None = None,
    circuit: Circuit | None = None,
    **details: Any,
) -> Outcome:
    """What a method hands back once its loop has run.

    Args:
        task: its clock has the seconds.
        method: name.
        done: what the loop did; the record says by which configuration.
        groups, circuit: where the method has them.
        details: go into the record.
    """
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
        details={
            "steps": done.steps,
            "update": done.config,
            "depth": done.depth,
            "target": done.target,
            "unseen_tokens": done.n_unseen,
            "conflicts": done.conflicts,
            "stages": dict(task.clock.seconds),
            "kept": task.shared.get("kept", []),
            **details,
        },
    )
