"""Which of a folder's rows its table is of: those of one configuration, data, settings and set of models."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

from curerec.bench import rows
from curerec.bench.artefacts import same_yardstick
from curerec.bench.plan import config_hash, plan
from curerec.bench.recipe import BenchRecipe

LineKey = tuple[str, str, str, str]  # dataset, model, request, method


def counted(recipe: BenchRecipe, lines: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """The newest row of each model and method, without those that nothing in the table may be of.

    Left out are rows of an earlier configuration, of other ratings or titles than the newest line's, of other
    settings than the method's newest, and those that were measured with other retrains than the original of
    their request and seed.

    Args:
        recipe: of the run.
        lines: of its ``rows.jsonl``, in order.
        out: folder of the run.
    """
    current, by_name = _current(recipe), {name: data_of(lines, name) for name in rows.OF_DATA}
    data = {one: {name: of.get(one) for name, of in by_name.items()} for one in recipe.datasets}

    def fits(row: dict[str, Any]) -> bool:
        of_data = rows.is_of(row, data.get(row["dataset"], {}))
        return of_data and current.get((_line_of(row), row["seed"])) == row["config_hash"]

    # Of the last line: among the newest of each key a row that is made anew has the place of its first one.
    chosen = {_line_of(r): r["settings"] for r in lines if r.get("settings") is not None and fits(r)}
    mine = [row for row in rows.newest(lines) if fits(row)]
    mine = [row for row in mine if row.get("settings") in (None, chosen.get(_line_of(row)))]
    whole = {ask.key: ask.whole.key for ask in recipe.requests}
    beside = {
        (row["dataset"], row["model"], row["request"], row["seed"]): row.get("yardstick")
        for row in mine
        if row["method"] == "original"
    }

    def of(row: dict[str, Any]) -> str | None:
        asked = whole.get(row["request"], row["request"])
        return beside.get((row["dataset"], row["model"], asked, row["seed"]))

    same = cache(partial(same_yardstick, out))
    return [row for row in mine if rows.is_beside(row, of(row), same)]


def data_of(lines: list[dict[str, Any]], name: str = "fingerprint") -> dict[str, str]:
    """Fingerprints by data set, or what else of :data:`rows.OF_DATA`, of the last line that has one."""
    return {row["dataset"]: row[name] for row in lines if row.get(name)}


def _line_of(row: dict[str, Any]) -> LineKey:
    return row["dataset"], row["model"], row["request"], row["method"]


def _current(recipe: BenchRecipe) -> dict[tuple[LineKey, int], str]:
    """The configuration in force of every line, by seed."""
    known: dict[LineKey, str] = {}
    out: dict[tuple[LineKey, int], str] = {}
    for job in plan(recipe):
        if job.ask is None or job.kind not in ("cell", "yardstick"):
            continue
        names = [job.method] if job.kind == "cell" else recipe.measured_once
        for name in names:
            key = (job.dataset, job.model, job.ask.key, name)
            if key not in known:
                known[key] = config_hash(recipe, job, name)
            out[key, job.seed] = known[key]
    return out
