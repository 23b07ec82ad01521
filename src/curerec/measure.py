"""Measuring models side by side: the metrics of a record, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation import METRICS
from curerec.evaluation.advantage import advantage, advantage_draws
from curerec.evaluation.answers import answers, gap_draws
from curerec.evaluation.auc import auc, auc_draws
from curerec.evaluation.bootstrap import Groups
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.cost import Meter
from curerec.evaluation.guard import probes_changed
from curerec.evaluation.left_alone import deleted_entities, left_alone
from curerec.evaluation.membership import membership
from curerec.evaluation.metric import NO_RETRAIN, Metric, Value, evaluate
from curerec.evaluation.residual import Reference
from curerec.evaluation.scene import Ground, scenes
from curerec.evaluation.utility import auc_drop, ece_rise, utility
from curerec.evaluation.verdict import Limits, verdict
from curerec.methods import METHODS
from curerec.methods.expected import Expected, expected_membership
from curerec.methods.task import Task
from curerec.opened import Opened, answers_at_hand
from curerec.records import ForgetSplit, Outcome

NO_SECOND = "no second model was retrained, and distances to it cannot be computed"
#: Metrics that are whole numbers.
COUNTS = ("n_trainable", "peak_mem_bytes", "mem_rise_bytes")


def candidate(outcome: Outcome, meter: Meter | None = None) -> Candidate:
    """A method's outcome as something to measure.

    Args:
        outcome: of the method.
        meter: that it ran under, where it did.
    """
    rebuild = outcome.details.get("rebuild")
    one = Candidate(outcome.model, outcome.t_core_s, outcome.t_total_s, outcome.n_trainable, rebuild)
    if meter is not None:
        one.forward_equivalents = meter.forward_equivalents
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
        shadows: by model, of :mod:`curerec.shadows`.
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
    for done, (name, scene) in enumerate(stages.items()):
        values[name] = {key: evaluate(metric, scene) for key, metric in chosen.items()}
        row: dict[str, Any] = {}
        metrics[name] = row
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


def judge(
    opened: Opened,
    split: ForgetSplit,
    original: Candidate,
    new: Candidate,
    base: Candidate,
    *,
    limits: Limits | None = None,
    ground: Ground | None = None,
) -> dict[str, Any]:
    """The verdict on an unlearned model, from D_f, D_c and D_v alone.

    Membership is judged against what is expected of a model that never saw D_f
    (:func:`curerec.methods.expected.expected_membership`: D_f is held against half of D_c, and the other half
    and D_r tell how that follows from the base's and the original's answers); where D_c or D_r has too few
    people for that, and the answers always, against the base model, which was fine-tuned on neither D_f nor
    D_c: its own numbers carry what tells the two sets, and their users, apart by chance.

    Args:
        opened, split: the recommender and the request.
        original, new: scored where :func:`measure` has not done it already.
        base: the model before fine-tuning; given to several calls it is scored once.
        limits: thresholds.
        ground: where one is at hand already.

    Returns:
        ``verified`` (True, False or None) and ``checks``.
    """
    ground = ground or ground_of(opened, split)
    groups = (ground.user("forget"), ground.user("control"))

    def losses(one: Candidate) -> list[np.ndarray]:
        return [ground.losses(one, part) for part in ("forget", "control")]

    limits = limits or Limits()
    now, was, before = losses(new), losses(original), losses(base)
    valid = [ground.logits(c, "valid") for c in (original, new)]
    known = utility(valid[0], split.valid.label)["auc"]
    worse = ece_rise(valid[0], valid[1], split.valid.label, groups=ground.user("valid"))
    lost = auc_drop(valid[0], valid[1], split.valid.label, groups=ground.user("valid"))
    probes = ground.logits(original, "forget"), ground.logits(new, "forget")
    told: dict[str, Any] = dict.fromkeys(
        ("membership_auc", "membership_error", "membership_original", "advantage", "advantage_error")
    ) | dict.fromkeys(("answers_gap", "answers_se", "answers_control"))
    if min(map(len, now)) >= 2:  # of a single example nothing can be told: these checks are not judged then
        expected = _expected(opened, ground, original, base)
        apart, chance = advantage(*now, groups=groups), advantage(*before, groups=groups)
        wider = np.subtract(*(advantage_draws(*one, groups=groups) for one in (now, before)))
        sides = [_sides(ground, one) for one in (new, base)]
        said, unsaid = (answers(*side) for side in sides)
        drawn = np.subtract(*(gap_draws(*side, groups=groups) for side in sides))
        drawn = drawn[np.isfinite(drawn)]
        told = {
            **(
                _by_base(now, was, before, groups)
                if expected is None
                else _by_expectation(now, was, expected, limits)
            ),
            "advantage": apart["value"],
            "advantage_error": limits.z * float(wider.std(ddof=1)),
            "advantage_target": chance["value"],
            "answers_gap": said["gap"],
            "answers_se": float(drawn.std(ddof=1)) if len(drawn) > 1 else None,
            "answers_control": said["control"],
            "answers_target": unsaid["gap"],
        }
    return verdict(
        probes_changed=probes_changed(*probes),
        auc_drop=lost["drop"],
        auc_drop_se=lost["se"],
        auc_original=known,
        ece_rise=worse["rise"],
        ece_rise_se=worse["se"],
        limits=limits,
        **_of_control(ground, original, new),
        **_one_by_one(ground, original, new),
        **told,
    )


def _of_control(ground: Ground, original: Candidate, new: Candidate) -> dict[str, Any]:
    """How much better the loss attack tells D_c from D_v than it did, over users.

    D_v is later than D_c, so the AUC itself is not .5; that is the same for both models.
    """
    groups = ground.user("control"), ground.user("valid")
    if min(map(len, groups)) < 2:
        return {"control_rise": None, "control_rise_se": None}
    sides = [[-ground.losses(one, part) for part in ("control", "valid")] for one in (new, original)]
    now, was = (auc(*side) for side in sides)
    drawn = np.subtract(*(auc_draws(*side, groups=groups) for side in sides))
    return {"control_rise": now - was, "control_rise_se": float(drawn.std(ddof=1))}


def _one_by_one(ground: Ground, original: Candidate, new: Candidate) -> dict[str, float]:
    """Share of the deleted about whom the weights answer as before, and what chance allows."""
    sides = [(ground.memory(original, part), ground.memory(new, part)) for part in ("forget", "control")]
    if "entities" not in ground.memo:
        ground.memo["entities"] = deleted_entities(ground.data, ground.split)
    found = left_alone(sides[0], sides[1], ground.memo["entities"], seed=ground.seed)
    return {"left_share": found["share"], "left_limit": found["limit"]}


def _by_base(
    now: list[np.ndarray], was: list[np.ndarray], before: list[np.ndarray], groups: Groups
) -> dict[str, float]:
    """Membership, and its error by a bootstrap of users, against the base's."""
    attack = membership(*now, groups=groups)
    return {
        "membership_auc": attack["auc"],
        "membership_error": (attack["high"] - attack["low"]) / 2,
        "membership_original": membership(*was, groups=groups)["auc"],
        "membership_target": membership(*before, groups=groups)["auc"],
    }


def _by_expectation(
    now: list[np.ndarray], was: list[np.ndarray], expected: Expected, limits: Limits
) -> dict[str, float]:
    """Membership against what a model that never saw D_f would show, by half of D_c."""
    shown = [auc(-forget, -control[expected.reference]) for forget, control in (now, was)]
    return {
        "membership_auc": shown[0],
        "membership_error": limits.z * expected.error,
        "membership_original": shown[1],
        "membership_target": expected.auc,
    }


def _expected(opened: Opened, ground: Ground, original: Candidate, base: Candidate) -> Expected | None:
    """Worked out once for all models of a request."""
    if "expected" not in ground.memo:
        task = Task.of(
            ground.split,
            original=opened.recommender,
            base_state=None,
            data=opened.data,
            tuning=opened.recipe.model.tuning,
            fresh=lambda: base.model,
            answered=answers_at_hand(opened),
        )
        forget, control = (
            (ground.memory(base, part), ground.memory(original, part)) for part in ("forget", "control")
        )
        ground.memo["expected"] = expected_membership(task, forget, control)
    found: Expected | None = ground.memo["expected"]
    return found


def _sides(ground: Ground, one: Candidate) -> tuple[np.ndarray, ...]:
    """Logits and labels on D_f, then on D_c."""
    parts = ("forget", "control")
    return tuple(x for part in parts for x in (ground.logits(one, part), ground.part(part).label))
