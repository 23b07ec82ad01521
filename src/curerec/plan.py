"""A dry run: what a request would cost on this machine, from a calibration of some seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from curerec.errors import RequestError
from curerec.machine import peak_memory_bytes
from curerec.methods import METHODS
from curerec.methods.cure.method import CureConfig
from curerec.pipeline import Opened, check_method, task_for
from curerec.progress import Clock
from curerec.recommender.score import device_of, score
from curerec.recommender.tune import tune
from curerec.records import ForgetRequest
from curerec.splitting import granted

PLANNED = ("cure", "random_modules", "retrain")
SHORT_S = 2.0  # a first calibration under this is followed by one at half of the real sizes
STEPS = (2, 6)  # of the two calibrations of the update
AHEAD = 20  # batches of D_r that the update prepares at a time
PROBE = 256  # prompts whose forward pass is the unit


@dataclass(frozen=True)
class Stage:
    """Estimated cost of a stage.

    Attributes:
        name: as the clock of a run calls it.
        time_s: seconds.
        forward_equivalents: forward passes of one prompt that would take as long.
    """

    name: str
    time_s: float
    forward_equivalents: float


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a request.

    Attributes:
        stages: in their order.
        mem_bytes: peak memory of the process (of the GPU, where there is one) during the calibration, which
            used the real batches.
        disk_bytes: of the new recommender.
        calibration_s: seconds that the estimate took.
        n_forget, n_retain: sizes of D_f and D_r.
    """

    stages: tuple[Stage, ...]
    mem_bytes: int
    disk_bytes: int
    calibration_s: float
    n_forget: int
    n_retain: int

    @property
    def time_s(self) -> float:
        """Sum over stages, seconds."""
        return sum(stage.time_s for stage in self.stages)


def plan(opened: Opened, request: ForgetRequest, method: str, config: Any = None, *, seed: int = 0) -> Plan:
    """Estimate stages, seconds and bytes of a request; nothing is written and no model is changed.

    ``cure`` runs twice on small shares of its sizes, and each stage is taken on the line through the two
    points to its real size. ``retrain`` takes some steps.

    Args:
        opened, request, method, config, seed: as for :func:`curerec.pipeline.unlearn`.

    Raises:
        RequestError: unknown method, one that is not planned, or a request that cannot be granted.
    """
    check_method(method)
    if method not in PLANNED:
        mend = f"Choose from {', '.join(PLANNED)}"
        raise RequestError("has no plan", where=f"--method {method}", mend=mend)
    began = time.perf_counter()
    split = granted(opened.data, opened.recipe, opened.split, request)
    device = device_of(opened.recommender.model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)

        def task() -> Any:
            return task_for(opened, split, seed=seed, clock=Clock())

        first = task()
        probe = first.encode(first.sample(first.retain, PROBE, 75))
        score(opened.recommender.model, probe, first.answers)  # warm
        unit = _timed(lambda: score(opened.recommender.model, probe, first.answers)) / len(probe)
        if method == "retrain":
            seconds = _retrain(first)
        else:
            seconds = _cure(task, method, config or opened.recipe.config_of(method))
    folder = opened.recommender.path
    return Plan(
        stages=tuple(Stage(name, s, s / unit) for name, s in seconds.items()),
        mem_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory_bytes(),
        disk_bytes=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder else 0,
        calibration_s=time.perf_counter() - began,
        n_forget=len(split.forget),
        n_retain=len(split.retain),
    )


def _timed(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _retrain(task: Any) -> dict[str, float]:
    """Seconds of fine-tuning anew, from as many steps as take a few seconds."""
    config = task.tuning
    encode = _timed(lambda: task.encode(task.sample(task.retain, 512, 76))) / min(512, len(task.retain))
    steps = max(1, round(config.epochs * -(-len(task.retain) // config.batch_size)))

    def some(n: int) -> float:
        prompts = task.encode(task.sample(task.retain, n * config.batch_size, 76))
        model, short = task.fresh(), config.model_copy(update={"epochs": 1.0})
        return _timed(lambda: tune(model, prompts, task.answers, short, seed=0)) / max(
            1, -(-len(prompts) // config.batch_size)
        )

    some(2)  # warm
    return {"encode": encode * len(task.retain), "update": some(16) * steps}


def _cure(task: Any, method: str, config: CureConfig) -> dict[str, float]:
    """Seconds by stage from two small runs."""

    def run(part: float, steps: int) -> tuple[CureConfig, Any]:
        update = config.update.model_copy(update={"max_steps": min(steps, config.update.max_steps)})
        small = config.model_copy(
            update={
                **{k: max(4, round(part * getattr(config, k))) for k in ("pairs", "pair_pool")},
                **{k: max(32, round(part * getattr(config, k))) for k in ("forget_size", "control_size")},
                "update": update,
            }
        )
        mine = task()
        METHODS[method][0](mine, small)
        return small, mine

    one = run(1 / 8, STEPS[0])
    share = 1 / 2 if one[1].clock.total_s < SHORT_S else 1 / 4
    two = run(share, STEPS[1])
    whole = (config, two[1])
    seconds = {}
    for name in two[1].clock.seconds:
        x, y, goal = (_driver(name, *point) for point in (one, two, whole))
        low, high = one[1].clock.seconds.get(name, 0.0), two[1].clock.seconds[name]
        slope = max(0.0, high - low) / (y - x) if y > x else 0.0
        seconds[name] = high + slope * (goal - y)
        if name == "update":
            looks = -(-config.update.max_steps // config.update.check_every)
            fixed = max(0.0, low - slope * x)  # a look, and the first batches of D_r
            ahead = _ahead(two[1], config)
            fills = -(-config.update.max_steps // AHEAD) - 1
            seconds[name] = slope * goal + fixed + (looks - 1) * max(0.0, fixed - ahead) + fills * ahead
    return seconds


def _ahead(task: Any, config: CureConfig) -> float:
    size = AHEAD * (config.update.retain_batch_size or config.update.batch_size)

    def fill() -> None:
        part = task.sample(task.retain, size, 77)
        task.original_logits(part, task.encode(part))

    return _timed(fill)


def _driver(stage: str, config: CureConfig, task: Any) -> float:
    """The size that a stage's cost is linear in; 1 where it does not depend on the shares."""
    if stage == "counterfactuals":
        return float(min(max(config.pairs, config.pair_pool), len(task.valid)))
    if stage == "circuit":
        return float(min(config.pairs, config.pair_pool, len(task.valid)))
    if stage == "contributions":
        scored = min(config.forget_size, len(task.forget)) + min(config.control_size, len(task.control))
        return float(scored)
    return float(config.update.max_steps) if stage == "update" else 1.0


__all__ = ["PLANNED", "Plan", "Stage", "plan"]
