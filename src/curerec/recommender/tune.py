"""The only training loop: fine-tuning, retraining, teachers and unlearning all run through it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.fitting import positions_of, prompts_that_fit
from curerec.recommender.fused import fused_activations
from curerec.recommender.memory import keep_freed
from curerec.recommender.parallel import Team
from curerec.recommender.runtime import (
    STEP,
    RuntimeConfig,
    checkpointed,
    compiled_layers,
    compiles,
    kept_low,
)
from curerec.recommender.score import answer_logits, device_of, on, to_batch
from curerec.recommender.spread import has_spread
from curerec.recommender.waypoints import Recorder

Progress = Callable[[int, int], None]


class TuneConfig(BaseModel):
    """How a model is fine-tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float = Field(3.0, gt=0, allow_inf_nan=False, description="passes over the training prompts")
    batch_size: int = Field(32, gt=0)
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with a rising rate")
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the average of the weights; 0 = off")
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"


def batches(
    lengths: np.ndarray, batch_size: int, rng: np.random.Generator, *, pool: int = 32
) -> list[np.ndarray]:
    """One epoch of index batches: shuffled, and of like length inside so that little is padded.

    Args:
        lengths: tokens of each prompt, [n].
        batch_size: prompts a batch; the last may be smaller.
        rng: source of the order.
        pool: batches sorted by length together; larger pads less and mixes lengths less.
    """
    order = rng.permutation(len(lengths))
    out: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * pool):
        part = order[start : start + batch_size * pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        out += [part[k : k + batch_size] for k in range(0, len(part), batch_size)]
    rng.shuffle(out)  # type: ignore[arg-type]
    return out


def endless(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Index batches without end, epoch after epoch.

    Raises:
        ValueError: there is nothing to draw from; an epoch of nothing would be followed by others for ever.
    """
    if not len(lengths):
        raise ValueError("no prompt to draw a batch from")
    while True:
        yield from batches(lengths, batch_size, rng)


class Averager:
    """Exponential moving average of weights, started at the first step without bias towards it."""

    def __init__(self, params: list[torch.nn.Parameter], decay: float) -> None:
        self.params, self.decay, self.steps = params, decay, 0
        self.mean = [p.detach().clone() for p in params]

    @torch.no_grad()
    def update(self) -> None:
        """Take the current weights in."""
        self.steps += 1
        decay = self.decay_at(self.steps)
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.params], 1 - decay)

    def decay_at(self, step: int) -> float:
        """Share of the average that a step leaves."""
        # A decay that grows from 0 keeps the first steps from weighing for ever.
        return min(self.decay, (1 + step) / (10 + step))

    def held(self, steps: int) -> np.ndarray:
        """Share in which the average after so many steps holds what each of them did, [steps].

        Example:
            >>> Averager([], 0.5).held(3).round(3)
            array([0.986, 0.923, 0.692])
        """
        decays = np.asarray([self.decay_at(k) for k in range(1, steps + 1)])
        return 1 - np.cumprod(decays[::-1])[::-1]

    @torch.no_grad()
    def store(self) -> None:
        """Put the average into the model."""
        for p, m in zip(self.params, self.mean, strict=True):
            p.copy_(m)


def optimise(
    params: list[torch.nn.Parameter],
    steps: int,
    gradients: Callable[[int], None],
    config: TuneConfig,
    *,
    after_step: Callable[[int], bool | None] | None = None,
    progress: Progress | None = None,
    momentum: float = 0.9,
    damping: float = 0.0,
    anchor: float = 0.0,
    recorder: Recorder | None = None,
) -> int:
    """Run an optimiser over gradients that a callable puts into ``.grad``.

    Args:
        params: what may change.
        steps: at most this many.
        gradients: given the step, fills ``.grad`` of the parameters.
        config: rate, schedule, averaging.
        after_step: given the number of steps done; returning True ends the loop.
        progress: told (done, total).
        momentum: of SGD; AdamW has its own.
        damping: AdamW's epsilon as a multiple of the root mean square of the first gradient; 0: 1e-8.
        anchor: share of the way that every step draws the parameters back to where they began, at the full
            rate, and less with the schedule; L2-SP (Li et al. 2018, arXiv 1802.01483), decoupled from the
            gradient as AdamW's weight decay is.
        recorder: takes waypoints; of AdamW, and given the names of ``params``.

    Returns:
        Number of steps done.
    """
    fused = False
    if config.optimizer == "adamw":
        # One kernel for all of it, and on a GPU no step counter that the host has to read.
        fused = all(type(p) is torch.nn.Parameter and p.is_floating_point() for p in params)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            params, lr=config.lr, weight_decay=config.weight_decay, fused=fused, foreach=not fused
        )
    else:
        optimizer = torch.optim.SGD(params, lr=config.lr, momentum=momentum, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: _rate(k, steps, config))
    average = Averager(params, config.ema) if config.ema else None
    if recorder:
        rates = np.asarray([config.lr * _rate(k, steps, config) for k in range(steps)])
        recorder.begin(rates, average.held(steps) if average else np.ones(steps))
    start = [p.detach().clone() for p in params] if anchor else []
    done = 0
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        gradients(step)
        if damping and step == 0:
            for group in optimizer.param_groups:
                group["eps"] = max(1e-8, damping * _root_mean_square(params))
        # Without a bound clipping would take a norm of, and multiply, all gradients for nothing.
        clips = recorder is not None or config.max_grad_norm < float("inf")
        norm = torch.nn.utils.clip_grad_norm_(params, config.max_grad_norm) if clips else None
        optimizer.step()
        if fused:  # torch does not count that it wrote, and who keeps what weights gave goes by the count
            for p in params:
                torch.autograd.graph.increment_version(p)
        if anchor:
            torch._foreach_lerp_([p.detach() for p in params], start, anchor * _rate(step, steps, config))
        scheduler.step()
        if average:
            average.update()
        done = step + 1
        if recorder and norm is not None:
            recorder(done, optimizer, norm / config.max_grad_norm)
        if progress:
            progress(done, steps)
        if after_step and after_step(done):
            break
    if average:
        average.store()
    return done


def _root_mean_square(params: list[torch.nn.Parameter]) -> float:
    """Of all entries of the gradients."""
    squares = sum(float(p.grad.float().square().sum()) for p in params if p.grad is not None)
    return (squares / sum(p.numel() for p in params)) ** 0.5


def _rate(step: int, steps: int, config: TuneConfig) -> float:
    warm = max(1, round(config.warmup * steps))
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "linear":
        return 1 - (step - warm) / max(1, steps - warm)
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def tune(
    model: Any,
    prompts: Prompts,
    answers: tuple[int, int],
    config: TuneConfig,
    *,
    seed: int,
    progress: Progress | None = None,
    runtime: RuntimeConfig | None = None,
    recorder: Recorder | None = None,
) -> Any:
    """Fine-tune the trainable parameters of a model on the answers of prompts, in place.

    Cross-entropy over the two answer logits at the answer position. Where ``accelerate launch`` started
    several processes, each takes its share of every batch and all end with the same weights.

    Args:
        model: decoder whose parameters with ``requires_grad`` are trained.
        prompts: training prompts, [n].
        answers: token ids of (no, yes).
        config: see :class:`TuneConfig`.
        seed: of the order of the data and of dropout.
        progress: told (done, total) steps.
        runtime: use of the machine; changes no result.
        recorder: takes waypoints, where one process trains.

    Returns:
        The same model, in eval mode.
    """
    runtime = runtime or RuntimeConfig()
    device = device_of(model)
    rng = np.random.default_rng([seed, 11])
    stream = endless(prompts.lengths, config.batch_size, rng)
    if device.type == "cpu":
        keep_freed()
    steps = max(1, round(config.epochs * np.ceil(len(prompts) / config.batch_size)))
    compiled = compiles(runtime, device, steps, spread=has_spread(model))
    room = positions_of(model) if compiled else None
    team = Team(model, answers) if parallel.count() > 1 else None
    params = team.params() if team else [p for p in model.parameters() if p.requires_grad]
    trained = team.inner if team else model
    recorder = None if team else recorder
    if recorder:
        recorder.names = [name for name, p in model.named_parameters() if p.requires_grad]

    def gradients(step: int) -> None:
        index, factor = team.share(next(stream)) if team else (next(stream), 1.0)
        ids, last = to_batch(prompts, index, device, multiple=STEP if compiled else 1, most=room)
        label = on(device, prompts.label[index].astype(np.int64))
        # What does not fit whole is added up part by part; several processes make one pass each.
        few = len(ids) if team else min(len(ids), prompts_that_fit(model, ids.shape[1], runtime))
        for k in range(0, len(ids), few):
            part = slice(k, k + few)
            share = factor * (len(label[part]) / len(label))
            with kept_low(runtime):
                logits = (
                    team.logits(ids, last)
                    if team
                    else answer_logits(model, ids[part], last[part], answers, lean=True, cut=False)
                )
                (share * torch.nn.functional.cross_entropy(logits, label[part])).backward()

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        torch.manual_seed(seed)
        stack.enter_context(fused_activations(trained))
        if runtime.checkpoint:
            stack.enter_context(checkpointed(trained))
        if compiled:
            stack.enter_context(compiled_layers(trained))
        trained.train()
        optimise(params, steps, gradients, config, progress=progress, recorder=recorder)
        if team:
            team.finish(params)
    return model.eval()
