"""From a record to one self-contained page: no script, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from curerec.reports import changed_words, figures, pictures, tables, verdicts, words
from curerec.reports.files import replace_file
from curerec.reports.schema import Record, as_record
from curerec.reports.templating import template

_DID = {
    "forget": (
        "Forgetting has a hold on it, good recommendations do not lean on it.",
        "Moved to forget, and held to its old answers on the data that stay.",
    ),
    "shared": (
        "Forgetting has a hold on it and good recommendations lean on it, or it is not clear which.",
        "Moved to forget only where that does not hurt the rest: the harmful part of each step is taken out.",
    ),
    "retain": (
        "Good recommendations lean on it, forgetting has little hold on it.",
        "Trained on the data that stay, to make good what forgetting disturbs.",
    ),
    "frozen": ("Neither holds for it.", "Left exactly as it was."),
}


def render(record: Record | Mapping[str, Any]) -> str:
    """The report of one run as HTML.

    Args:
        record: a record, or the mapping of one.

    Returns:
        One page: style and pictures inline, no script, no external address, every string of the record
        escaped. It holds no user or item id, since a record has none.

    Raises:
        DataError: the mapping is not a record.

    Related: :func:`write_report`, :func:`curerec.reports.schema.read_record`.

    Example:
        >>> metrics = {"original": {}, "npo": {}}
        >>> page = render({"schema": "curerec-record/2", "method": "npo", "metrics": metrics})
        >>> "Not judged" in page, "<script" in page
        (True, False)
    """
    return template("report.html.j2").render(_view(as_record(record))) + "\n"


def write_report(record: Record | Mapping[str, Any], path: str | Path) -> Path:
    """Render a record and write it whole or not at all.

    Args:
        record: a record, or the mapping of one.
        path: target, usually ``report.html``.

    Returns:
        The path written.

    Raises:
        DataError: the mapping is not a record.
        StorageError: the file cannot be written.
    """
    return replace_file(path, render(record))


def _view(record: Record) -> dict[str, Any]:
    residual = tables.residual_of(record, record.method)
    state, word, sentence = verdicts.verdict(record, residual)
    has_retrain = record.retrained is not None
    return {
        "record": record,
        "f": figures,
        "state": state,
        "word": word,
        "sentence": sentence,
        "when": _when(record.created),
        "keys": verdicts.key_figures(record, residual),
        "asked": words.request(record),
        "asked_for": verdicts.asked_for(record),
        "changed": changed_words.changed(record),
        "agreement": changed_words.agreement(record),
        "steps": changed_words.steps(record),
        "groups": _groups(record),
        "core_swatch": Markup(dict(pictures.legend())["core"]),
        "residual": words.residual(record, residual) if has_retrain or residual is not None else [],
        "not_computed": tables.not_computed(record),
        "membership": words.membership(record),
        "membership_table": tables.membership(record),
        "utility": words.utility(record),
        "utility_table": tables.utility(record),
        "time": words.time(record),
        "stages": tables.stages(record),
        "stopping": words.stopping(record),
        "circuit": words.circuit(record),
        "not_claimed": verdicts.not_claimed(record),
        "metrics_table": tables.metrics(record),
        "endings": tables.endings(record),
        "scores_table": tables.scores(record),
        "trace_table": tables.trace(record.update),
        "second_table": tables.trace(record.update.second_arm) if record.update.second_arm else None,
        "members": tables.members(record),
        "config": tables.flat(record.config),
        "versions": tables.flat(record.versions),
        "machine": tables.flat(record.machine),
        "pictures": {name: Markup(text) for name, text in _pictures(record).items()},
    }


def _pictures(record: Record) -> dict[str, str]:
    trace, circuit, ours = record.update.trace or [], record.circuit, record.method
    conflicts, second = record.update.conflicts, record.update.second_arm
    residual = {name: tables.residual_of(record, name) for name in {*record.metrics, *record.residual}}
    return {
        "map": pictures.module_map(
            record.groups.cells or [],
            circuit.scores or [],
            circuit.modules or [],
            unit=record.groups.granularity or "unit",
        ),
        "residual": pictures.residual_scale(residual, ours=ours, width=960),
        "residual_narrow": pictures.residual_scale(residual, ours=ours, width=340),
        "membership": pictures.membership(record.metrics, ours=ours),
        "test_auc": pictures.test_auc(record.metrics, ours=ours),
        "trace": pictures.update_trace(trace, record.update.target),
        "second": pictures.update_trace(second.trace or [], record.update.target) if second else "",
        "conflict": pictures.conflict((conflicts.steps if conflicts else None) or trace),
        "curve": pictures.circuit_curve(circuit.curve or [], circuit.size, circuit.faithfulness),
        "scores": pictures.module_scores(circuit.scores or []),
    }


def _groups(record: Record) -> list[dict[str, Any]]:
    swatches = dict(pictures.legend())
    return [
        {
            "name": pictures.ROLE_NAMES[role].capitalize(),
            "swatch": Markup(swatches[role]),
            "what": _DID[role][0],
            "did": _did(role, record),
            "count": count,
            "share": share,
        }
        for role, count, share in tables.groups(record)
    ]


def _did(role: str, record: Record) -> str:
    """What was done to a group; words that only deleted data showed go back in any."""
    told = _DID[role][1]
    if role == "frozen" and record.update.unseen_tokens:
        return "Left exactly as it was, but for the words above."
    return told


def _when(created: str | None) -> str:
    try:
        at = datetime.fromisoformat((created or "").replace("Z", "+00:00"))
    except ValueError:
        return created or ""
    zone = " UTC" if at.utcoffset() is not None and not at.utcoffset() else f" {at:%z}" if at.tzinfo else ""
    return f"{at.day} {at:%B %Y, %H:%M}{zone}"
