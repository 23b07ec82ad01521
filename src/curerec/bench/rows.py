"""The row of a table: one model on one request, as one JSON object."""

from __future__ import annotations

import datetime
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from curerec.bench.plan import Job, config_hash
from curerec.bench.recipe import BenchRecipe
from curerec.interactions import Interactions
from curerec.machine import machine, versions
from curerec.reports.schema import is_retrain, plain

#: Columns of PROTOCOL section 5. Seconds, bytes and nats.
COLUMNS = (
    "test_auc",
    "acc",
    "log_loss",
    "jsd",
    "residual",
    "jeffreys_half",
    "membership_auc",
    "membership_gap",
    "relearn_ratio",
    "int8_residual",
    "nf4_residual",
    "t_core",
    "t_total",
    "retrain_ratio",
    "peak_memory",
    "trainable_parameters",
)
#: What a row is of.
ABOUT = (
    "dataset",
    "model",
    "forget_kind",
    "forget_ratio",
    "seed",
    "config_hash",
    "versions",
    "device",
)
#: What a later row has in common with the one that it replaces.
KEY = ("dataset", "model", "request", "seed", "method", "config_hash")
#: Without these no row is one.
NEEDED = (*KEY, "failure")
#: What a row and a trial name of their data: digests of the ratings and of the titles.
OF_DATA = ("fingerprint", "titles")
#: What a trial names of the model that it changed: sha256 of the development original's weights.
ORIGINAL = "original"
#: Names of section 5 whose values :data:`curerec.evaluation.METRICS` has under others.
MEASURED = {
    "acc": "test_acc",
    "log_loss": "test_log_loss",
    "t_core": "t_core_s",
    "t_total": "t_total_s",
    "trainable_parameters": "n_trainable",
    "peak_memory": "peak_mem_bytes",
    "int8_residual": "residual_int8",
    "nf4_residual": "residual_nf4",
}
#: Measured values that a row holds beyond section 5.
FURTHER = (
    "test_ece",
    "valid_auc",
    "l2",
    "jsd_test",
    "excess_jsd",
    "membership_tpr_at_fpr_01",
    "forward_equivalents",
    "forward_ratio",
    "mem_rise_bytes",
)
#: What a row of a method holds beside its metrics: it is timed, not read off the answers.
LATENCY = "latency_ratio"
#: What section 5 names that costs more than the answers on the four parts; a recipe asks for it.
ATTACKS = ("relearn_ratio", "int8_residual", "nf4_residual")
#: What stays of a row where only costs mean anything.
COSTS = (
    "t_core",
    "t_total",
    "retrain_ratio",
    "peak_memory",
    "trainable_parameters",
    "forward_equivalents",
    "forward_ratio",
    "mem_rise_bytes",
)
RANDOM_WEIGHTS = "the weights are random: only time and memory mean anything"
NOT_ASKED = "the recipe does not ask for it (columns)"
REFERENCE = "a retrain is what the others are compared with"
TRAINED = "not asked of them: base, original and retrains are made once and used by all cells"
NO_SCALE = "the ceiling is not above the floor: there is no scale"
NO_VALID = "there is no validation example to time an answer on"
NO_INTERVAL = "of fewer than five users, or in some resamples nothing was there to forget: no interval"
UNTOLD = "the method does not say"
#: Begins the failure of a cell whose method handed the original back.
NOTHING = "nothing happened"

Row = dict[str, Any]


def metric_of(column: str) -> str:
    """The metric behind a column.

    Example:
        >>> metric_of("acc"), metric_of("jsd")
        ('test_acc', 'jsd')
    """
    return MEASURED.get(column, column)


def column_of(metric: str) -> str:
    """The column in which a row holds a metric.

    Example:
        >>> column_of("test_acc"), column_of("depth")
        ('acc', 'depth')
    """
    return next((column for column, name in MEASURED.items() if name == metric), metric)


def about(recipe: BenchRecipe, job: Job, method: str, *, shared: bool, **more: Any) -> Row:
    """Everything of a row but its measurements.

    Args:
        recipe, job: of the run.
        method: whose row it is.
        shared: whether other cells ran beside it on the same machine, which times depend on.
        more: further keys.
    """
    ask = job.ask
    assert ask is not None
    where = machine()
    return {
        **dict.fromkeys(COLUMNS),
        "dataset": job.dataset,
        "model": job.model,
        "method": method,
        "forget_kind": ask.kind,
        "forget_ratio": ask.share,
        "forget_choice": ask.choice,
        "forget_parts": ask.parts,
        "request": ask.key,
        "seed": job.seed,
        "config_hash": config_hash(recipe, job, method),
        "versions": versions(),
        "device": where["device"],
        **{key: where[key] for key in ("processor", "cores", "memory_bytes", "threads")},
        "shared_machine": shared,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "failure": None,
        "missing": {},
        **more,
    }


def measured(metrics: Mapping[str, Any], *, costs_only: bool = False) -> Row:
    """The measurements of a row, under the protocol's names; and why some are missing.

    Args:
        metrics: of one model, by name of :data:`curerec.evaluation.METRICS`.
        costs_only: leave out all but costs.
    """
    values = {name: metrics.get(metric_of(name)) for name in COLUMNS}
    known = {*MEASURED.values(), *values}
    further = {name: value for name, value in metrics.items() if name not in known}
    if costs_only:
        further = dict.fromkeys(FURTHER) | further
        gone = [name for name in (*values, *further) if name not in COSTS]
        values |= dict.fromkeys(name for name in gone if name in values)
        further |= dict.fromkeys(name for name in gone if name in further)
        return {**values, **further, "missing": dict.fromkeys(gone, RANDOM_WEIGHTS)}
    return {**values, **further, "missing": {}}


def explained(row: Row) -> Row:
    """The row with a reason for every column that has no value, and none for one that has."""
    row = plain(row)  # what is not finite is no value
    reference = row["method"] in ("original", "base") or is_retrain(row["method"])
    why = {
        "residual": REFERENCE if is_retrain(row["method"]) else NO_SCALE,
        **dict.fromkeys(("peak_memory", "mem_rise_bytes"), TRAINED if reference else UNTOLD),
        **dict.fromkeys(
            ("relearn_ratio", "int8_residual", "nf4_residual"), TRAINED if reference else NOT_ASKED
        ),
        LATENCY: TRAINED if reference else NO_VALID,
    }
    missing = {
        name: row["missing"].get(name) or why.get(name, UNTOLD)
        for name in dict.fromkeys((*COLUMNS, *FURTHER, LATENCY, *row["missing"]))
        if row.get(name) is None
    }
    if row.get("residual") is not None and row.get("residual_low") is None and not is_retrain(row["method"]):
        missing["residual_low"] = NO_INTERVAL
    return {**row, "missing": missing}


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is of; a later row of the same key replaces an earlier one."""
    return tuple(row[k] for k in KEY)


def whole_of(request: str) -> str:
    """The key of a request in one piece (:attr:`curerec.bench.recipe.Ask.whole`), from that of a sequence.

    Example:
        >>> whole_of("users-0.1-random-x10-kept"), whole_of("users-0.1-random")
        ('users-0.1-random', 'users-0.1-random')
    """
    return re.sub(r"-x\d+(-kept)?$", "", request)


def of_data(data: Interactions) -> Row:
    """What a row or a trial names of the data that it is made with (:data:`OF_DATA`)."""
    return {"fingerprint": data.fingerprint, "titles": data.titles_digest}


def is_of(row: Mapping[str, Any], data: Mapping[str, str | None]) -> bool:
    """Whether a row or a trial is of these data; what it does not name, or what is not known, may be these.

    Args:
        row: of any model or method.
        data: digests by name of :data:`OF_DATA`.
    """
    return all(data.get(name) in (None, row[name]) for name in OF_DATA if row.get(name) is not None)


def is_beside(
    row: Mapping[str, Any], yardstick: str | None, same: Callable[[str, str], bool] = operator.eq
) -> bool:
    """Whether a row was measured with this yardstick; one that names none, or where none is known, is.

    Args:
        row: of any model or method; of failed ones those that handed the original back name one.
        yardstick: of the original's row of the same request and seed.
        same: whether two names stand for the same.
    """
    own = row.get("yardstick")
    return yardstick is None or own is None or same(own, yardstick)


def newest(rows: list[Row]) -> list[Row]:
    """The last row of each key, in order of first appearance."""
    return list({row_key(row): row for row in rows}.values())
