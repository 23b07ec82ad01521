"""What each kind of work costs on this machine, from a few batches of a request's own prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from curerec.calibration import Calibration, Line, padded_tokens
from curerec.circuits.activations import layer_of, sites_of
from curerec.circuits.adapter import weight_deltas
from curerec.circuits.belonging import modules_with_units
from curerec.circuits.patching import patched_margins
from curerec.circuits.path import path_scores
from curerec.circuits.scorers import atp
from curerec.groups.assign import SHARED, assign, comparable
from curerec.methods.combining import Combining
from curerec.methods.cure.method import CureConfig
from curerec.methods.expected import clusters, items_gone, pool
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.loop import free, tuning_of
from curerec.methods.rules import Rules, uniform
from curerec.methods.task import Task
from curerec.progress import Clock
from curerec.prompts.counterfactual import counterfactual_pairs
from curerec.prompts.encoding import Prompts, queries
from curerec.recommender.alive import LivePeak
from curerec.recommender.lower import lowest_updated, nothing_kept
from curerec.recommender.score import at_a_time, device_of, score
from curerec.recommender.stored_answers import StoredAnswers
from curerec.recommender.tune import Averager, optimise
from curerec.recommender.units import Units, inner_products, units_of
from curerec.records import Examples
from curerec.workload import BATCH, Kind, Part, Sizes

PROBE = 256  # prompts of D_r that everything is measured on
SMALL = 16  # prompts of the smaller of two batches
REPEATS = 3  # of each measurement; the median counts
FEW = 4  # prompts that say how long the measurement itself will take
SECONDS = 1.0  # for a batch: of a model that needs more for one in use, fewer prompts are measured, once
SAMPLE = 512  # prompts a part whose lengths stand for all
TITLES = 512  # titles that are encoded for a rate
DRAWS = (2, 8)  # resamples of the groups


def sizes_of(task: Task, config: CureConfig | None = None) -> Sizes:
    """Sizes of a request and its model; heads and MLPs are those that the circuit is sought among.

    Args:
        task: the request.
        config: says what a unit is, and which answers D_r is held to; None: the default.
    """
    config = config or CureConfig()
    held = task.retain_before if config.update.changed_prompts else task.retain
    among = modules_with_units(task.original.model, config.granularity)
    heads = [".head." in name for name in among]
    asked = task.retain.take(pool(clusters(task)[task.retain.target]))
    return Sizes(
        len(task.forget),
        len(task.retain),
        len(task.control),
        len(task.valid),
        sum(heads),
        len(heads) - sum(heads),
        sites_of(task.original.model).n_layers,
        min(map(layer_of, among)),
        unknown_forget=_unknown(task.answered, task.forget),
        unknown_retain=_unknown(task.as_trained or task.answered, held),
        unknown_control=_unknown(task.answered, task.control),
        base_forget=_unknown(task.answered, task.forget, base=True),
        base_retain=_unknown(task.answered, asked, base=True),
        base_control=_unknown(task.answered, task.control, base=True),
        waypoints=task.waypoints.count if task.waypoints else 0,
        adapter=task.base_state is None,
        learns=not items_gone(task),
    )


def _unknown(stored: StoredAnswers | None, examples: Examples, *, base: bool = False) -> float:
    """Share of examples whose answers are not stored."""
    if stored is None or not len(examples):
        return 1.0
    return float(1 - stored.find(examples, base=base)[1].mean())


def timed(run: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median seconds of a callable."""
    seen = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        _settle()
        seen.append(time.perf_counter() - start)
    return statistics.median(seen)


def _settle() -> None:
    """Wait for what a GPU has still to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def calibrate(task: Task, config: CureConfig) -> Calibration:
    """Measure every kind of work of :func:`curerec.workload.of_cure`.

    Each that runs the model is measured on a batch of the size in use and on one of :data:`SMALL` prompts,
    by the function that does it in earnest; on smaller ones where that would take long. The model and the
    task are left as they were. Where states below an adapter are kept (:mod:`curerec.recommender.lower`), a
    whole pass and one above them are both measured.

    Args:
        task: the request; some of D_r's prompts stand in for all others, lengths apart.
        config: of the method.
    """
    model, answers = task.original.model, task.answers
    sample = task.sample(task.retain, PROBE, 75)
    whole, task = task, replace(task, forget=sample, clock=Clock(), shared={})  # a small request of its kind
    lines: dict[Kind, Line] = {}
    n_items = len(task.data.items)
    titles = timed(lambda: task.encoder.title_tokens(range(min(n_items, TITLES))), 1)
    lines["titles"] = Line(titles * n_items / min(n_items, TITLES))
    prompts = task.encode(sample)  # the titles in them are encoded here
    lines["encode"] = Line(0.0, timed(lambda: task.encode(sample)) / len(prompts))
    lines["pairs"] = _pairs(task, config)
    units = units_of(model, config.granularity)
    lines["copy"] = Line(timed(lambda: (task.copy_of_model(), _deltas(task, units))))
    lines["base"] = Line(timed(task.base_model))
    deltas = _deltas(task, units)
    among = modules_with_units(model, config.granularity)
    half = set(among[::2])
    change = task.copy_of_model()
    objective = ForgetObjective(task, config.update.model_copy(update={"forget_loss": "npo"}))
    rules = Rules(units, uniform(units, device_of(model)))
    names = [n for n in rules.trainable() if n in dict(change.named_parameters(remove_duplicate=False))]
    params = free(change, names)
    step_batch = config.update.retain_batch_size or config.update.batch_size

    def twice(k: np.ndarray) -> tuple[Any, Any]:
        return prompts.take(k), prompts.take(k)

    def path(k: np.ndarray) -> Any:
        return path_scores(model, prompts.take(k), answers, units, deltas, steps=1)

    runs: dict[Kind, tuple[int, Callable[[np.ndarray], Any]]] = {
        "score": (BATCH["score"], lambda k: score(model, prompts.take(k), answers)),
        "patched": (BATCH["patched"], lambda k: patched_margins(model, *twice(k), answers, [half])),
        "atp": (BATCH["atp"], lambda k: atp.score(model, *twice(k), answers, among=among)),
        "path": (BATCH["path"], path),
        "gradient": (min(step_batch, BATCH["gradient"]), lambda k: objective.gradient(change, params, k)),
    }
    with nothing_kept():
        lines |= {kind: _line(run, prompts, batch) for kind, (batch, run) in runs.items()}
    above: dict[Kind, Line] = {}
    if first := lowest_updated(model):
        above = {kind: _line(run, prompts, batch, states_kept=True) for kind, (batch, run) in runs.items()}
    for measured in (lines, above):  # two runs
        if "patched" in measured:
            measured["patched"] = Line(measured["patched"].fixed / 2, measured["patched"].rate / 2)
    values, _ = objective.gradient(change, params, np.arange(2))
    grads = dict(zip(names, values, strict=True))
    lines["products"] = Line(timed(lambda: inner_products(units, grads, grads)))
    lines["step"] = Line(_step(whole, config, units, dict(zip(names, params, strict=True)), values))
    scores = path(np.arange(SMALL))
    lines["assign"] = _assign(whole, config, scores, units)
    parts: tuple[Part, ...] = ("forget", "retain", "control", "valid")
    lengths = {p: task.encode(whole.sample(getattr(whole, p), SAMPLE, 75)).lengths for p in parts}
    lengths["corrupt"] = lengths["valid"]
    held = {p: len(getattr(whole, p)) for p in parts}
    held["corrupt"] = held["valid"]

    def in_use(kind: Kind) -> float:
        """Seconds of a batch of the size in use."""
        batch = min(runs[kind][0], len(prompts))
        return lines[kind].fixed + lines[kind].rate * padded_tokens(prompts.lengths[:batch], batch, batch)

    unit = in_use("score") / min(BATCH["score"], len(prompts))
    sizes = BATCH | {"gradient": max(step_batch, config.update.batch_size)}
    device = device_of(model)
    # Of a quick model such batches have just been run, and what they took is known.
    slow = [kind for kind in runs if in_use(kind) > SECONDS]
    with_gradient = {kind: None if kind in ("score", "patched") else model for kind in runs}
    most = max(
        (_batch_bytes(runs[k][1], prompts, sizes[k], device, with_gradient[k]) for k in slow), default=0
    )
    return Calibration(lines, lengths, unit, above, held, sites_of(model).n_layers, first, most)


def _line(
    run: Callable[[np.ndarray], Any], prompts: Prompts, batch: int, *, states_kept: bool = False
) -> Line:
    """Seconds of a pass by padded tokens, from a small batch and one of the size in use, or affordable."""

    def point(n: int, seconds: float) -> tuple[float, float]:
        return padded_tokens(prompts.lengths[:n], n, batch), seconds

    most = min(batch, len(prompts))
    few = min(FEW, most)
    seconds = min(timed(lambda: run(np.arange(few)), 1) for _ in range(2))  # memory is taken
    large = min(most, max(2 * FEW, int(SECONDS / seconds * few)))
    if large == most or states_kept:
        run(np.arange(large))  # kernels are chosen, states are kept
    if large < most:
        return Line.through(point(few, seconds), point(large, timed(lambda: run(np.arange(large)), 1)))
    points = [point(n, timed(lambda n=n: run(np.arange(n)))) for n in (min(SMALL, most), most)]  # type: ignore[misc]
    return Line.through(*points)


def _batch_bytes(
    run: Callable[[np.ndarray], Any],
    prompts: Prompts,
    batch: int,
    device: torch.device,
    model: Any = None,
) -> int:
    """Bytes of tensors alive at once in a pass over ``batch`` of the longest prompts, reckoned from few.

    Args:
        run: passes over prompts, by index.
        prompts: [n].
        batch: prompts a pass; fewer are taken where they are long, as in earnest.
        device: of the model.
        model: of a pass with gradients, whose batches must fit; None for one without.
    """
    longest = np.argsort(-prompts.lengths, kind="stable")
    sizes = (FEW // 2, FEW)
    peaks = []
    for n in sizes:
        with LivePeak() as memory:
            run(longest[:n])
        peaks.append(memory.peak)
    each = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    return round(peaks[1] + each * (at_a_time(prompts, batch, device, model) - sizes[1]))


def _deltas(task: Task, units: Any) -> Any:
    if task.base_state is None:
        return {}
    return weight_deltas(task.original.model, task.base_state, units)


def _pairs(task: Task, config: CureConfig) -> Line:
    """Counterfactuals, by prompts: a graph, a walk from each candidate, a search for each item."""
    whole = min(max(config.pairs, config.pair_pool), len(task.valid))
    points = []
    for n in (min(SMALL, whole), min(4 * SMALL, whole)):
        wanted = queries(task.data, task.sample(task.valid, n, 71))
        points.append(
            (n, timed(lambda q=wanted: counterfactual_pairs(task.data, q, task.encoder, task.train_rows)))  # type: ignore[misc]
        )
    return Line.through(*points)


def _step(
    task: Task,
    config: CureConfig,
    units: Units,
    parameters: dict[str, torch.nn.Parameter],
    grads: list[torch.Tensor],
) -> float:
    """What a step costs beside its gradients: the rules, the optimiser, notes, the running average.

    Which units forget, and which weights move, is not known: all may, and are asked for conflict.

    Args:
        task: whose size says what differs for small requests.
        config: of the method.
        units: of the model.
        parameters: by name; they are moved.
        grads: of each, for both sides.
    """
    sizes = len(task.forget), len(task.retain)
    update = config.update.for_request(*sizes)
    masks = None
    if config.saliency_for(*sizes) is not None:
        masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
    role = torch.full_like(uniform(units, grads[0].device), SHARED)
    rules = Rules(units, role, masks=masks, both=config.project == "both")
    params = list(parameters.values())
    combining, average = Combining(rules, update, parameters), Averager(params, update.average)
    at: list[float] = []

    def gradients(step: int) -> None:
        combining.combine(grads, grads, update.push)

    def after(done: int) -> None:
        combining.moved()
        average.update()
        _settle()
        at.append(time.perf_counter())

    optimise(
        params, REPEATS + 1, gradients, tuning_of(update),
        after_step=after, damping=update.damping, anchor=update.anchor or 0.0,
    )  # fmt: skip
    return statistics.median(np.diff(at))


def _assign(task: Task, config: CureConfig, scores: np.ndarray, units: Any) -> Line:
    """Roles and their resamples, on scores of the real shape."""
    retain = np.resize(scores, (min(config.control_size, len(task.control)), scores.shape[1]))
    types = comparable(units.types)
    census = len(task.forget) <= config.forget_size

    def once(draws: int) -> float:
        drawn = None if census else np.resize(scores, (draws, scores.shape[1]))
        return timed(
            lambda: assign(
                scores.mean(0)[None], retain, units.names, types,
                draws=draws, census=census, forget_draws=drawn, tau=config.tau,
            )
        )  # fmt: skip

    return Line.through(*((draws, once(draws)) for draws in DRAWS))


__all__ = ["PROBE", "calibrate", "sizes_of", "timed"]
