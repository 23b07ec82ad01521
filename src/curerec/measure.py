"""Measuring models side by side: the metrics of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation import METRICS
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.cost import Meter
from curerec.evaluation.metric import NO_RETRAIN, Metric, Value, evaluate
from curerec.evaluation.metric import NO_SECOND as NO_FLOOR
from curerec.evaluation.residual import Reference
from curerec.evaluation.scene import Ground, scenes
from curerec.methods import METHODS
from curerec.opened import Opened
from curerec.records import ForgetRequest, ForgetSplit, Outcome

NO_SECOND = "no second model was retrained, and distances to it cannot be computed"
#: Metrics that are whole numbers.
COUNTS = ("n_trainable", "peak_mem_bytes", "mem_rise_bytes")


def candidate(outcome: Outcome, meter: Meter | None = None) -> Candidate:
    """A method's outcome as something to measure.

    Args:
        outcome: of the method.
        meter: that it ran under, where it did. Passes of a making that was before the request (the methods
            of shards) are taken off; peak memory is of both.
    """
    rebuild = outcome.details.get("rebuild")
    one = Candidate(outcome.model, outcome.t_core_s, outcome.t_total_s, outcome.n_trainable, rebuild)
    one.stop_reason = outcome.stop_reason
    if meter is not None:
        making = outcome.details.get("setup_forward_equivalents", 0.0)
        one.forward_equivalents = meter.forward_equivalents - making
        one.peak_mem_bytes, one.mem_rise_bytes = meter.peak_mem_bytes, meter.mem_rise_bytes
    return one


def method_of(card: Mapping[str, Any]) -> str:
    """The method that made a recommender, from its card; ``given`` where that names none that is known.

    Args:
        card: of :func:`curerec.recommender.storage.read_card`.

    Example:
        >>> method_of({"unlearned": [{"method": "npo", "request": "3f2a"}]}), method_of({})
        ('npo', 'given')
    """
    done = card.get("unlearned") or []
    name = done[-1].get("method") if done else "retrain" if card.get("without") else None
    return name if name in METHODS else "given"


def of_others(card: Mapping[str, Any], request: ForgetRequest) -> bool:
    """Whether a model was made for other requests than this one, by its card; one that names none was not.

    Args:
        card: of :func:`curerec.recommender.storage.read_card`.
        request: that the model is judged by.
    """
    made_for = [*(step.get("request") for step in card.get("unlearned") or []), card.get("without")]
    return any(made_for) and request.digest not in made_for


@dataclass
class Measured:
    """Metrics of all models, distances where there are retrains, and why some are missing.

    Attributes:
        metrics: by model, then by key: plain numbers as a record holds them.
        floor_jsd, ceiling_jsd, rankable: of the retrained models and the original; None without them.
        residual: of every model but the original and the retrains.
        missing: reasons, by path.
        values: by model, then by metric: the values with interval, n and details.
    """

    metrics: dict[str, dict[str, Any]]
    floor_jsd: float | None
    ceiling_jsd: float | None
    rankable: bool | None
    residual: dict[str, float]
    missing: dict[str, str]
    values: dict[str, dict[str, Value]]


def ground_of(opened: Opened, split: ForgetSplit, *, seed: int = 0, draws: int = 1000) -> Ground:
    """What all models of one request have in common, for :func:`measure` and for single metrics.

    Args:
        opened: the original recommender with its data.
        split: the request applied.
        seed, draws: of the bootstraps and of everything random in an attack.
    """
    tuning = opened.recipe.model.tuning
    return Ground(opened.data, split, opened.recommender, tuning, seed=seed, draws=draws)


def measure(
    opened: Opened,
    split: ForgetSplit,
    models: dict[str, Candidate],
    retrains: dict[str, Candidate],
    *,
    names: Iterable[str] | None = None,
    ground: Ground | None = None,
    shadows: Mapping[str, Any] | None = None,
    seeds: Mapping[str, Sequence[Candidate]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Compute metrics of all models side by side.

    Args:
        opened: the original recommender with its data.
        split: the request applied.
        models: by name; must hold ``original``.
        retrains: by name (``retrain``, ``retrain_2``, ...); empty in production.
        names: of :data:`curerec.evaluation.METRICS`; None: those that the models' answers alone give.
        ground: where one is at hand already; None: made of ``opened`` and ``split``.
        shadows: by model, of :mod:`curerec.shadows`; or why there can be none.
        seeds: by model, other runs of the same method.
        progress: told (done, total) models.

    Raises:
        ConfigError: a name that is no metric.

    Source: PROTOCOL sections 2 and 5.
    """
    chosen = chosen_metrics(names)
    ground = ground or ground_of(opened, split)
    stages = scenes(ground, models, retrains, shadows=dict(shadows or {}), seeds=dict(seeds or {}))
    metrics: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, Value]] = {}
    missing: dict[str, str] = {}
    if not retrains and "retrain" in models:  # the method is one: what is missing is another
        missing["metrics.retrain_2"] = NO_SECOND
    elif not retrains:
        missing["metrics.retrain"] = NO_RETRAIN
    elif len(retrains) == 1:
        missing |= dict.fromkeys(("residual", "floor_jsd", "ceiling_jsd"), NO_FLOOR)
    for done, (name, scene) in enumerate(stages.items()):
        values[name] = {key: evaluate(metric, scene) for key, metric in chosen.items()}
        row: dict[str, Any] = {}
        metrics[name] = row
        if name in models and models[name].stop_reason:
            row["stop_reason"] = models[name].stop_reason
        for key, value in values[name].items():
            row |= cells(chosen[key], value)
            if value.missing:
                missing[f"metrics.{name}.{key}"] = value.missing
        if progress:
            progress(done + 1, len(stages))
    if unasked := [key for key in METRICS if key not in chosen]:
        missing["attacks"] = "not asked for: " + ", ".join(unasked)
    reference = None
    if len(retrains) >= 2:
        yes = [ground.p_yes(r, "forget") for r in retrains.values()]
        reference = Reference(np.stack(yes), ground.p_yes(models["original"], "forget"))
    # Where retrains were given, each model has its entry; nan where the original is no farther than they are.
    found = {name: value["residual"] for name, value in values.items() if "residual" in value}
    residual = {
        name: float("nan") if value.value is None else value.value
        for name, value in found.items()
        if len(retrains) >= 2 and name not in retrains and name != "original"
    }
    return Measured(
        metrics,
        reference.floor if reference else None,
        reference.ceiling if reference else None,
        reference.rankable if reference else None,
        residual,
        missing,
        values,
    )


def chosen_metrics(names: Iterable[str] | None) -> dict[str, Metric]:
    """Metrics by name, in the order of the registry.

    Args:
        names: None: all that need no more than the answers on the four parts.

    Raises:
        ConfigError: a name that is no metric.

    Example:
        >>> list(chosen_metrics(["jsd", "test_auc"]))
        ['test_auc', 'jsd']
    """
    if names is None:
        return {key: metric for key, metric in METRICS.items() if metric.cost == "arrays"}
    wanted = set(names)
    if unknown := sorted(wanted - set(METRICS)):
        mend = f"Choose from {', '.join(METRICS)}"
        raise ConfigError(f"no metric {', '.join(unknown)}", where="metrics", mend=mend)
    return {key: metric for key, metric in METRICS.items() if key in wanted}


def names_for(asked: Sequence[str], *, shadows: bool = False) -> list[str] | None:
    """Metrics to compute for what a command was asked: the plain ones, and the named ones beside them.

    Args:
        asked: names of metrics; ``attacks`` stands for all that need no shadow models.
        shadows: whether there are shadow models.

    Returns:
        Names; None where nothing was asked for.

    Raises:
        ConfigError: a name that is no metric.

    Example:
        >>> names_for([]), "depth" in names_for(["attacks"]), "ulira_auc" in names_for(["attacks"])
        (None, True, False)
    """
    if not asked and not shadows:
        return None
    wanted = set(chosen_metrics(None)) | set(chosen_metrics(n for n in asked if n != "attacks"))
    if "attacks" in asked:
        wanted |= {key for key, metric in METRICS.items() if metric.cost != "shadows"}
    if shadows:
        wanted |= {key for key, metric in METRICS.items() if metric.cost == "shadows"}
    return list(chosen_metrics(wanted))


def cells(metric: Metric, value: Value) -> dict[str, Any]:
    """A value as a record's row holds it: the number, and its interval where there is one.

    Example:
        >>> cells(METRICS["jsd"], Value(0.1, 0.0, 0.2))
        {'jsd': 0.1, 'jsd_low': 0.0, 'jsd_high': 0.2}
    """
    number: float | int | None = value.value
    if number is not None and metric.name in COUNTS:
        number = int(number)
    row = {metric.name: number}
    if value.low is not None and value.high is not None:
        row |= {f"{metric.interval}_low": value.low, f"{metric.interval}_high": value.high}
    return row
