"""A dry run: what a request would cost on this machine, from a calibration of some seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from curerec.errors import RequestError
from curerec.machine import peak_memory_bytes
from curerec.measuring import PROBE, calibrate, sizes_of, timed
from curerec.methods import CONTROLS
from curerec.methods.cure.retain_side import kept_of
from curerec.opened import Opened
from curerec.pipeline import check_method, deterministic, task_for
from curerec.progress import Clock
from curerec.recommender.lower import lowest_adapted, nothing_kept
from curerec.recommender.score import device_of, score
from curerec.recommender.tune import tune
from curerec.records import ForgetRequest
from curerec.splitting import granted
from curerec.workload import of_cure

PLANNED = ("cure", *CONTROLS, "retrain")
TRIED = (1, 12)  # steps of a retrain that are taken, to warm up and to measure
SECONDS = 5.0  # where so many steps would take longer, the first is the measurement


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
        mem_bytes: peak memory of the process (of the GPU, where there is one): what the calibration took,
            or what was taken before it and the largest of the passes to come, if that is more.
        disk_bytes: of the new recommender.
        calibration_s: seconds that the estimate took.
        n_forget, n_retain: sizes of D_f and D_r.
        kept: what training or an earlier request left for this one, and is not counted.
    """

    stages: tuple[Stage, ...]
    mem_bytes: int
    disk_bytes: int
    calibration_s: float
    n_forget: int
    n_retain: int
    kept: tuple[str, ...] = ()

    @property
    def time_s(self) -> float:
        """Sum over stages, seconds."""
        return sum(stage.time_s for stage in self.stages)


def plan(
    opened: Opened,
    request: ForgetRequest,
    method: str,
    config: Any = None,
    *,
    seed: int = 0,
    retain_side: Path | None = None,
) -> Plan:
    """Estimate stages, seconds and bytes of a request; nothing is written and no model is changed.

    For ``cure`` the passes of every stage are counted from the configuration (:mod:`curerec.workload`) and
    a few batches say what each kind takes here (:mod:`curerec.measuring`). ``retrain`` takes some steps.

    Args:
        opened, request, method, config, seed, retain_side: as for :func:`curerec.pipeline.unlearn`.

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
    kept: tuple[str, ...] = ()
    before, batch = _peak_bytes(device), 0
    with deterministic(seed):
        task = task_for(opened, split, seed=seed, clock=Clock(), retain_side=retain_side)
        if method == "retrain":
            probe = task.encode(task.sample(task.retain, PROBE, 75))
            with nothing_kept():
                score(opened.recommender.model, probe, task.answers)  # warm
                unit = timed(lambda: score(opened.recommender.model, probe, task.answers)) / len(probe)
            seconds = _retrain(task)
        else:
            config = config or opened.recipe.config_of(method)
            found = calibrate(task, config)
            kept = kept_of(task, config)
            unit, batch = found.unit, found.batch_bytes
            seconds = found.of_stages(of_cure(config, sizes_of(task, config), kept))
    folder = opened.recommender.path
    return Plan(
        stages=tuple(Stage(name, s, s / unit) for name, s in seconds.items()),
        mem_bytes=max(_peak_bytes(device), before + batch),
        disk_bytes=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder else 0,
        calibration_s=time.perf_counter() - began,
        n_forget=len(split.forget),
        n_retain=len(split.retain),
        kept=kept,
    )


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory_bytes()


def _retrain(task: Any) -> dict[str, float]:
    """Seconds of fine-tuning anew, from as many steps as take a few seconds."""
    config = task.tuning
    sample = task.sample(task.retain, 512, 76)
    encode = timed(lambda: task.encode(sample), 1) / len(sample)
    steps = max(1, round(config.epochs * -(-len(task.retain) // config.batch_size)))

    def some(n: int) -> float:
        prompts = task.encode(task.sample(task.retain, n * config.batch_size, 76))
        model, short = task.fresh(), config.model_copy(update={"epochs": 1.0})
        taken = -(-len(prompts) // config.batch_size)
        return (
            timed(lambda: tune(model, prompts, task.answers, short, seed=0, runtime=task.runtime), 1) / taken
        )

    with nothing_kept():
        first = some(TRIED[0])
        tried = TRIED[1] if first * TRIED[1] < SECONDS else TRIED[0]
        first = again = some(tried) if tried > TRIED[0] else first
    if lowest_adapted(task.original.model):  # from the second epoch on, steps begin above kept states
        some(tried)
        again = some(tried)
    once = min(steps, -(-len(task.retain) // config.batch_size))
    return {"encode": encode * len(task.retain), "update": first * once + again * (steps - once)}


__all__ = ["PLANNED", "Plan", "Stage", "plan"]
