"""A dry run: what a request would cost on this machine, from a calibration of some seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from curerec.calibration import Calibration, Line, padded_tokens
from curerec.errors import RequestError
from curerec.machine import peak_memory_bytes
from curerec.measuring import PROBE, SAMPLE, calibrate, sizes_of, timed
from curerec.methods import CONTROLS
from curerec.methods.cure.retain_side import kept_of
from curerec.methods.task import Task
from curerec.opened import Opened
from curerec.pipeline import check_method, deterministic, task_for
from curerec.progress import Clock
from curerec.recommender import stored_answers, waypoints
from curerec.recommender.lower import STATES, lowest_updated, nothing_kept
from curerec.recommender.score import device_of, score
from curerec.recommender.tune import tune
from curerec.records import ForgetRequest
from curerec.result import STAGE
from curerec.result_work import rehearsed
from curerec.splitting import granted
from curerec.workload import BATCH, Part, Work, of_cure

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
        stages: of the request, in their order.
        result: measuring and judging what it comes to, which the command does after it.
        mem_bytes: peak memory of the process (of the GPU, where there is one), measuring the result included:
            what the calibration took, or what was taken before it and the largest of the passes to come, or
            the models that are held while measuring, if that is more; and the states that will be kept.
        request_bytes: the same of the request alone.
        disk_bytes: of the new recommender.
        calibration_s: seconds that the estimate took.
        n_forget, n_retain: sizes of D_f and D_r.
        kept: what training or an earlier request left for this one, and is not counted.
    """

    stages: tuple[Stage, ...]
    result: Stage
    mem_bytes: int
    request_bytes: int
    disk_bytes: int
    calibration_s: float
    n_forget: int
    n_retain: int
    kept: tuple[str, ...] = ()

    @property
    def time_s(self) -> float:
        """Sum over the request's stages, seconds."""
        return sum(stage.time_s for stage in self.stages)

    @property
    def whole_s(self) -> float:
        """The same with measuring the result."""
        return self.time_s + self.result.time_s


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
    a few batches say what each kind takes here (:mod:`curerec.measuring`). ``retrain`` takes some steps. What
    measures the result is rehearsed on drawn answers (:mod:`curerec.result_work`).

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
    states = (0, 0)  # that the request keeps, and measuring with it
    with deterministic(seed):
        task = task_for(opened, split, seed=seed, clock=Clock(), retain_side=retain_side)
        if method == "retrain":
            found = _short(task)
            seconds = _retrain(task, found)
            request_peak = _peak_bytes(device)
            after = rehearsed(opened, split, method)
            measuring_s = sum(found.seconds(one) for one in after.work)
        else:
            config = config or opened.recipe.config_of(method)
            found = calibrate(task, config)
            kept, batch = kept_of(task, config), found.batch_bytes
            request_peak = _peak_bytes(device)
            after = rehearsed(opened, split, method)
            work = of_cure(config, sizes_of(task, config), kept)
            shown = task.encode(task.sample(split.test, SAMPLE, 75)).lengths
            found = replace(
                found,
                lengths={**found.lengths, "test": shown},
                sizes={**found.sizes, "test": len(split.test)},
            )
            whole = {**work, STAGE: after.work}
            seconds = found.of_stages(whole)
            measuring_s = seconds.pop(STAGE)
            states = (_states_bytes(task, found, work), _states_bytes(task, found, whole))
    unit = found.unit
    measuring_s += after.numbers_s
    request_bytes = max(request_peak, before + batch) + states[0]
    held = before + 2 * _own_bytes(task)  # the new model and, loaded anew, the base
    return Plan(
        stages=tuple(Stage(name, s, s / unit) for name, s in seconds.items()),
        result=Stage(STAGE, measuring_s, measuring_s / unit),
        mem_bytes=max(request_bytes, max(_peak_bytes(device), held) + states[1]),
        request_bytes=request_bytes,
        disk_bytes=_disk_bytes(opened.recommender.path),
        calibration_s=time.perf_counter() - began,
        n_forget=len(split.forget),
        n_retain=len(split.retain),
        kept=kept,
    )


def _disk_bytes(folder: Path | None) -> int:
    """Of a recommender's folder without what only training leaves there."""
    of_training = (stored_answers.FILE, waypoints.FILE)
    files = [] if folder is None else [f for f in folder.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files if f.name not in of_training)


def _own_bytes(task: Task) -> int:
    """Of a copy of the model's weights: nothing to speak of with an adapter, whose base is shared."""
    if task.base_state is None:
        return 0
    return sum(p.numel() * p.element_size() for p in task.original.model.parameters())


def _states_bytes(task: Task, found: Calibration, work: Mapping[str, list[Work]]) -> int:
    """Of the states below an adapter that some work will keep beside those that are kept already."""
    if not found.above:
        return 0
    embedding = task.original.model.get_input_embeddings().weight
    each = embedding.shape[1] * embedding.element_size()
    return max(0, round(min(STATES.most, found.kept_tokens(work) * each)) - STATES.held)


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory_bytes()


def _short(task: Task) -> Calibration:
    """What encoding, scoring and loading the base take; each part is taken to be as long as some of D_r."""
    sample = task.sample(task.retain, SAMPLE, 76)
    encode = timed(lambda: task.encode(sample), 1) / len(sample)
    probe = task.encode(task.sample(task.retain, PROBE, 75))
    with nothing_kept():
        score(task.original.model, probe, task.answers)  # warm
        seconds = timed(lambda: score(task.original.model, probe, task.answers))
    rate = seconds / padded_tokens(probe.lengths, len(probe), BATCH["score"])
    parts: tuple[Part, ...] = ("forget", "retain", "control", "valid", "test")
    return Calibration(
        {
            "encode": Line(0.0, encode),
            "base": Line(timed(task.base_model, 1)),
            "score": Line(0.0, rate),
        },
        dict.fromkeys(parts, probe.lengths),
        seconds / len(probe),
    )


def _retrain(task: Task, found: Calibration) -> dict[str, float]:
    """Seconds of fine-tuning anew, from as many steps as take a few seconds."""
    config, encode = task.tuning, found.lines["encode"].rate
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
    if lowest_updated(task.original.model):  # from the second epoch on, steps begin above kept states
        some(tried)
        again = some(tried)
    once = min(steps, -(-len(task.retain) // config.batch_size))
    return {"encode": encode * len(task.retain), "retrain": first * once + again * (steps - once)}


__all__ = ["PLANNED", "Plan", "Stage", "plan"]
