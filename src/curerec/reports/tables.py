"""The report's tables: rows of text ready for the template, numbers already formatted."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from curerec.reports import figures as f
from curerec.reports.grid import ORDER, ROLE_NAMES
from curerec.reports.parts import SecondUpdate, Update
from curerec.reports.pictures import in_order
from curerec.reports.schema import Metrics, Record
from curerec.reports.svg import finite
from curerec.reports.verdicts import unrankable, why

Show = Callable[[float | None], str]


@dataclass(frozen=True)
class Table:
    """Heads and rows; the first column holds names, all others numbers, right-aligned.

    Attributes:
        heads: column names.
        rows: one list of cells each, as long as ``heads``.
        strong: index of the row (or, with ``by_column``, the column) that the reader looks for.
        by_column: see ``strong``.
    """

    heads: list[str]
    rows: list[list[str]]
    strong: int | None = None
    by_column: bool = False


def _nats(value: float | None) -> str:
    return f.fixed(value, 4)


_METRICS: tuple[tuple[str, str, Show], ...] = (
    ("test_auc", "Test AUC", f.fixed),
    ("test_acc", "Test accuracy at 0.5", f.fixed),
    ("test_log_loss", "Test log-loss, nats", f.fixed),
    ("test_ece", "Test calibration error (ECE)", f.fixed),
    ("valid_auc", "Validation AUC", f.fixed),
    ("jsd", "JSD to retrain on deleted data, nats", _nats),
    ("jeffreys_half", "Half Jeffreys divergence, nats", _nats),
    ("l2", "L2 distance of P(yes)", _nats),
    ("jsd_test", "JSD to retrain on test data, nats", _nats),
    ("residual", "Residual", lambda v: f.fixed(v, 2)),
    ("excess_jsd", "JSD on deleted minus on unseen data, nats", lambda v: f.signed(v, 4)),
    ("excess_residual", "  as a residual", lambda v: f.fixed(v, 2)),
    ("membership_auc", "Membership AUC", f.fixed),
    ("membership_interval", "  95 % interval", f.fixed),
    ("membership_tpr_at_fpr_01", "  TPR at 1 % FPR", f.fixed),
    ("membership_gap", "  gap to retrain", f.signed),
    ("t_core_s", "Core time", f.seconds),
    ("t_total_s", "Total time", f.seconds),
    ("retrain_ratio", "Total time / retraining", lambda v: f.fixed(v, 2)),
    ("n_trainable", "Parameters that could change", f.count),
)


def metrics(record: Record) -> Table:
    """Every metric of every model; metrics nobody has are left out."""
    models = in_order(record.metrics, record.method)
    rows = []
    for key, name, show in _METRICS:
        if key == "membership_interval":
            cells = [f.interval(m.membership_low, m.membership_high) for _, m in models]
        else:
            cells = [_with_bounds(show, _value(record, n, m, key), m, key) for n, m in models]
        rows.append([name.replace("  ", "\u2003"), *cells])
    keys = {k for _, m in models for k in m.extra}
    if unrankable(record):  # those after rounding, too
        keys -= {key for key in keys if key.startswith("residual_")}
    for key in sorted(keys - _bounds(keys | set(Metrics.model_fields)), key=_place):
        rows.append([_label(key), *(_cell(m, key) for _, m in models)])
    names = [n for n, _ in models]
    strong = names.index(record.method) + 1 if record.method in names else None
    kept = [row for row in rows if any(cell != f.NONE for cell in row[1:])]
    return Table(["", *(f.method(n) for n in names)], kept, strong, by_column=True)


def endings(record: Record) -> list[tuple[str, str]]:
    """(method, why its update ended) of every model for which that is recorded, in the table's order."""
    models = in_order(record.metrics, record.method)
    return [(f.method(name), model.stop_reason) for name, model in models if model.stop_reason]


#: Names of further metrics, in the order of the table; what is not here follows by its key.
_FURTHER = {
    "test_auc_others": "Test AUC, users of whom nothing was deleted",
    "ndcg_at_10": "NDCG@10 among 99 sampled items",
    "hr_at_10": "Hit rate@10 among 99 sampled items",
    "jsd_full": "JSD over the vocabulary on deleted data, nats",
    "jsd_mean": "JSD of seed averages, nats",
    "membership_advantage": "Best-threshold advantage",
    "answers_gap": "Answers on deleted against unseen data, AUC gap",
    "privleak": "PrivLeak, %",
    "ulira_auc": "U-LiRA AUC",
    "ulira_tpr_at_fpr_01": "U-LiRA TPR at 1 % FPR",
    "relearn_steps": "Steps to relearn",
    "relearn_ratio": "Steps to relearn / retrain's",
    "residual_int8": "Residual after int8",
    "residual_nf4": "Residual after nf4",
    "membership_auc_int8": "Membership AUC after int8",
    "membership_auc_nf4": "Membership AUC after nf4",
    "depth": "Depth of forgetting",
    "peak_mem_bytes": "Peak memory, bytes",
    "mem_rise_bytes": "Memory above what was held, bytes",
    "forward_equivalents": "Forward-equivalents",
    "forward_ratio": "Forward-equivalents / retraining",
}


def _with_bounds(show: Show, value: float | None, model: Metrics, key: str) -> str:
    low, high = (model.extra.get(f"{key}_{end}") for end in ("low", "high"))
    if value is None or low is None or high is None:
        return show(value)
    return f"{show(value)} [{show(low)}, {show(high)}]"


def _place(key: str) -> tuple[int, str]:
    """Known names in their order, others after them by key."""
    return (list(_FURTHER).index(key) if key in _FURTHER else len(_FURTHER), key)


def _label(key: str) -> str:
    return _FURTHER.get(key, key.replace("_", " "))


def _bounds(keys: set[str]) -> set[str]:
    """Keys that are an end of another key's interval."""
    ends = {f"{key}_{end}" for key in keys for end in ("low", "high")}
    return keys & ends


def _cell(model: Metrics, key: str) -> str:
    """A number, and in brackets its interval where there is one."""
    value, low, high = (model.extra.get(key + end) for end in ("", "_low", "_high"))
    shown = f.significant(value)
    if value is None or low is None or high is None:
        return shown
    return f"{shown} [{f.significant(low)}, {f.significant(high)}]"


def utility(record: Record) -> Table:
    """Quality of the recommendations by model."""
    columns = (
        ("test_auc", f.fixed),
        ("test_acc", f.fixed),
        ("test_log_loss", f.fixed),
        ("test_ece", f.fixed),
    )
    measured = in_order(record.metrics, record.method)
    models = [(n, m) for n, m in measured if any(finite(getattr(m, k)) for k, _ in columns)]
    rows = [[f.method(n), *(show(getattr(m, k)) for k, show in columns)] for n, m in models]
    heads = ["Model", "AUC", "Accuracy", "Log-loss", "Calibration error"]
    return _with_ours(heads, rows, models, record.method)


def membership(record: Record) -> Table:
    """What an attacker can tell, by model."""
    models = [(n, m) for n, m in in_order(record.metrics, record.method) if finite(m.membership_auc)]
    rows = [
        [
            f.method(n),
            f.fixed(m.membership_auc),
            f.interval(m.membership_low, m.membership_high),
            f.signed(m.membership_gap),
        ]
        for n, m in models
    ]
    return _with_ours(["Model", "AUC", "95 % interval", "Gap to retrain"], rows, models, record.method)


def stages(record: Record) -> list[tuple[str, str, float]]:
    """(stage, time, share of the longest in percent)."""
    timed = [(s.name, s.time_s) for s in record.cost.stages or [] if s.time_s is not None and s.time_s >= 0]
    longest = max((t for _, t in timed), default=0.0) or 1.0
    return [(name, f.seconds(t), round(100 * t / longest, 1)) for name, t in timed]


def groups(record: Record) -> list[tuple[str, str, str]]:
    """(role, count, share) in the order of the map's bars."""
    counts: dict[str, int] = {}
    for role in ORDER:
        named, cells = getattr(record.groups, role) or [], record.groups.cells
        counts[role] = sum(getattr(c, role) for c in cells) if cells else len(named)  # not all are named
    total = sum(counts.values())
    return [(role, f.count(counts[role]), f.percent(counts[role] / total)) for role in ORDER] if total else []


def members(record: Record) -> list[tuple[str, list[str]]]:
    """(role name, compressed unit names) of every group that names its units."""
    named = [(ROLE_NAMES[role], compress(getattr(record.groups, role) or [])) for role in ORDER]
    return [(role, lines) for role, lines in named if lines]


def compress(names: Iterable[str]) -> list[str]:
    """Names that differ only in their last number, on one line.

    Example:
        >>> compress(["a.row.3", "a.row.1", "a.row.2", "a.row.9", "b"])
        ['a.row 1–3, 9', 'b']
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    single = []
    for name in names:
        match = re.fullmatch(r"(.+)\.(\d{1,9})", name)
        if match:
            numbers[match[1]].add(int(match[2]))
        else:
            single.append(name)
    lines = []
    for stem, found in numbers.items():
        runs: list[list[int]] = []
        for number in sorted(found):
            if runs and number == runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        lines.append(f"{stem} " + ", ".join(f"{a}–{b}" if b > a else str(a) for a, b in runs))
    return lines + single


def scores(record: Record) -> Table:
    """Circuit scores of every module, the strongest first."""
    ranked = sorted(record.circuit.scores or [], key=lambda s: -abs(s.score or 0.0))
    rows = [
        [
            s.module,
            f.signed(s.score),
            f.interval(s.low, s.high),
            f.signed(s.exact),
            "yes" if s.in_core else "no",
        ]
        for s in ranked
    ]
    return Table(["Module", "Score", "95 % interval", "Exact", "In core"], rows)


def trace(update: Update | SecondUpdate) -> Table:
    """An update's check points, with every figure that any of them holds."""
    steps = update.trace or []
    named = ("membership_auc", "valid_auc", "forget_loss", "retain_loss", "cos_mean", "projected")
    extra = sorted({k for t in steps for k in t.extra})
    found = [k for k in named if any(finite(getattr(t, k)) for t in steps)]
    rows = [
        [
            str(t.step),
            *(f.fixed(getattr(t, k)) for k in found),
            *(f.significant(t.extra.get(k)) for k in extra),
        ]
        for t in steps
    ]
    return Table(["Step", *(k.replace("_", " ").replace("auc", "AUC") for k in [*found, *extra])], rows)


def not_computed(record: Record) -> list[tuple[str, list[str]]]:
    """(reason, what it keeps from being computed) of the headline figures that this record cannot hold."""
    ours, name = record.ours or Metrics(), record.method
    wanted = (
        (
            f"residual.{name}",
            residual_of(record, name),
            "Residual: how much of the distance to a retrained model is left",
        ),
        (f"metrics.{name}.jsd", ours.jsd, "Distance of the answers to a retrained model's (JSD)"),
        ("floor_jsd", record.floor_jsd, "Noise floor: distance between two retrained models"),
        ("ceiling_jsd", record.ceiling_jsd, "Ceiling: distance of the original to a retrained model"),
        (
            f"metrics.{name}.membership_gap",
            ours.membership_gap,
            "Gap of the membership test to a retrained model",
        ),
        (f"metrics.{name}.membership_auc", ours.membership_auc, "Membership test against data never seen"),
    )
    reasons: dict[str, list[str]] = {}
    for path, value, what in wanted:
        if not finite(value):
            reasons.setdefault(why(record, path), []).append(what)
    return list(reasons.items())


def flat(values: Mapping[str, Any], stem: str = "") -> list[tuple[str, str]]:
    """A nest of settings as (dotted name, text); long lists are counted, not shown.

    Example:
        >>> flat({"a": {"b": 1.5, "c": [1, 2]}, "d": list(range(99))})
        [('a.b', '1.5'), ('a.c', '1, 2'), ('d', '99 values')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{stem}{key}"
        if isinstance(value, Mapping) and value:
            rows += flat(value, name + ".")
        elif isinstance(value, list):
            long = len(value) > 12 or any(isinstance(v, dict | list) for v in value)
            rows.append((name, f"{len(value)} values" if long else ", ".join(map(_scalar, value)) or "none"))
        else:
            rows.append((name, _scalar(value)))
    return rows


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, Mapping):
        return f.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def residual_of(record: Record, name: str) -> float | None:
    """A method's residual, wherever the record holds it; None where nothing was there to rank by."""
    if unrankable(record):
        return None
    value = record.residual.get(name)
    model = record.metrics.get(name)
    return value if value is not None or model is None else model.residual


def _value(record: Record, name: str, model: Metrics, key: str) -> float | None:
    if key == "excess_residual" and unrankable(record):
        return None
    return residual_of(record, name) if key == "residual" else getattr(model, key)


def _with_ours(
    heads: list[str], rows: list[list[str]], models: list[tuple[str, Metrics]], ours: str
) -> Table:
    names = [n for n, _ in models]
    # A column in which nobody has a value tells nothing; the text beside the table says why it is missing.
    kept = [i for i in range(len(heads)) if i == 0 or any(row[i] != f.NONE for row in rows)]
    strong = names.index(ours) if ours in names else None
    return Table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows], strong)
