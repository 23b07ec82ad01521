"""One table of all rows: means and intervals over seeds, significance, failures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from curerec.bench import rows
from curerec.bench.artefacts import OBSTACLES
from curerec.bench.counted import counted, data_of
from curerec.bench.lines import read_lines
from curerec.bench.marks import Earlier, by_seed, mark
from curerec.bench.plan import config_hash, plan, title_of
from curerec.bench.recipe import Ask, BenchRecipe
from curerec.bench.search import ends, grid_of
from curerec.config import parse
from curerec.data import durable
from curerec.errors import ConfigError, DataError
from curerec.evaluation.residual import RANKABLE
from curerec.reports.bench_schema import SCHEMA
from curerec.reports.schema import plain

#: Columns that are averaged, beyond those of the protocol.
FURTHER = ("auc_drop", "test_ece", "jsd_test", "excess_jsd", "valid_auc", "latency_ratio")


def summarise(out: Path) -> dict[str, Any]:
    """The summary of a benchmark's folder, as plain values for :mod:`curerec.reports.bench_page`.

    A block is a data set, a model and a request; a line of it is a model or method with the mean over the
    seeds that ran and the half-width of the 95 % Student interval. A method that handed the original back on
    a seed has the original's answers there: left out, it would be averaged over the seeds on which it did
    something. Rows of an earlier configuration or of other settings than the method's newest, of seeds that
    the recipe does not name (any more), of other data than the newest and of other retrains than the original
    of their seed stands beside are left out and counted.
    Significance is worked out from the stored predictions; where those are not at hand (only the rows and
    their summary were kept) from the rows' means and the error that the summary has.

    Raises:
        DataError: the folder holds no benchmark.
    """
    recipe = _recipe(out)
    lines = read_lines(out / "rows.jsonl", rows.NEEDED)
    mine, data = counted(recipe, lines, out), data_of(lines)
    blocks, earlier = [], _earlier(out)
    for ask, place in _asks(recipe):
        blocks.append(_block(recipe, ask, place, mine, out, earlier.get((*place, ask.key), {})))
    return plain(
        {
            "schema": SCHEMA,
            "name": recipe.name,
            "costs_only": recipe.costs_only,
            "seeds": recipe.seeds,
            "retrains": recipe.retrains,
            "blocks": blocks,
            "left_out": len(rows.newest(lines)) - len(mine),
            "versions": mine[-1]["versions"] if mine else {},
            "sources": sorted({s for r in mine if (s := r["versions"].get("source"))}),
            "data": data,
            "devices": sorted({f"{r['processor']}, {r['threads']} threads" for r in mine}),
            "shared_machine": any(r["shared_machine"] for r in mine),
            "newest": max((r["created"] for r in mine), default=None),
            "search": _search(recipe, out, mine),
        }
    )


def write_summary(out: Path) -> dict[str, Any]:
    """Summarise, and put ``summary.json`` and ``bench.html`` into the folder."""
    from curerec.reports.bench_page import write_bench

    found = summarise(out)
    durable.write(out / "summary.json", (json.dumps(found, indent=1) + "\n").encode(), mode=0o644)
    write_bench(found, out / "bench.html")
    return found


def _earlier(out: Path) -> dict[tuple[str, str, str], Earlier]:
    """What the summary in the folder says of each block's methods against ours; empty without one."""
    try:
        blocks = json.loads((out / "summary.json").read_text(encoding="utf-8"))["blocks"]
        return {
            (b["dataset"], b["model"], b["request"]): {
                line["name"]: {key: line.get(key) for key in ("against", "against_excess")}
                for line in b["lines"]
            }
            for b in blocks
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _recipe(out: Path) -> BenchRecipe:
    path = out / "bench.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        mend = "Give the --out folder of `curerec bench --recipe`"
        raise DataError("holds no benchmark", where=str(out), mend=mend) from None
    try:
        return parse(BenchRecipe, values, where=str(path))
    except ConfigError as error:
        raise DataError(
            "was written by another version", where=str(path), mend="Run the recipe again"
        ) from error


def _asks(recipe: BenchRecipe) -> list[tuple[Ask, tuple[str, str]]]:
    """Each request by its key and each place that it is run on, in order; whatever methods answer it."""
    first: dict[str, Ask] = {}
    for ask in recipe.requests:
        first.setdefault(ask.key, ask)
    run = {(ask.key, place) for ask in recipe.requests for place in recipe.places_of(ask)}
    places = [(dataset, model) for dataset in recipe.datasets for model in recipe.models]
    return [(ask, place) for key, ask in first.items() for place in places if (key, place) in run]


def _block(
    recipe: BenchRecipe,
    ask: Ask,
    place: tuple[str, str],
    found: list[dict[str, Any]],
    out: Path,
    earlier: Earlier,
) -> dict[str, Any]:
    dataset, model = place
    asks = [one for one in recipe.requests if one.key == ask.key and place in recipe.places_of(one)]
    asked = {seed for one in asks for seed in recipe.seeds_of(one)}  # a sequence may have fewer of them
    here = [r for r in found if (r["dataset"], r["model"]) == place and r["seed"] in asked]
    yard = [r for r in here if r["request"] == ask.whole.key and r["method"] == "original"]
    retrains = [r for r in here if r["request"] == ask.whole.key and r["method"] in recipe.references]
    bases = [r for r in here if r["request"] == ask.whole.key and r["method"] == "base"]
    cells = [r for r in here if r["request"] == ask.key and r["method"] not in recipe.measured_once]
    theirs = {s: [r["test_auc"] for r in retrains if r["seed"] == s] for s in {r["seed"] for r in retrains}}
    expected: dict[str, int] = {}
    for one in asks:
        for method in one.chosen:
            expected[method] = max(expected.get(method, 0), len(recipe.seeds_of(one)))
    most = max(expected.values(), default=0)
    failed = {name: [r for r in cells if r["method"] == name and r["failure"]] for name in expected}
    cells = [row for r in cells if (row := _standing(r, yard)) is not None]
    lines = []
    for name, mine, wanted in (
        ("original", yard, most),
        ("retrain", retrains, most),
        *([("base", bases, most)] if bases else []),
        *((m, [r for r in cells if r["method"] == m], n) for m, n in expected.items()),
    ):
        good = [r for r in mine if not r["failure"]]
        gone = failed.get(name, [r for r in mine if r["failure"]])
        line = _line(name, good, gone, theirs, wanted, most)
        line["values"]["residual_of_seeds"] = line["values"]["residual"]
        line["values"]["residual"] = pooled = _pooled_residual(good)
        if (why := line["missing"].pop("residual", None)) is not None:  # of single seeds' own
            line["missing"]["residual_of_seeds"] = why
            if pooled is None or pooled["n"] < len(line["seeds"]):
                line["missing"]["residual"] = why
        line["values"]["excess_residual"] = (
            _pooled_excess(good, yard, retrains) if name != "retrain" else None
        )
        if name == "retrain":
            line["failures"] += _obstacles(out, place, ask, asked - {r["seed"] for r in yard})
        lines.append(line)
    scale = {name: [r[name] for r in yard if r.get(name) is not None] for name in ("floor", "ceiling")}
    means = {k: float(np.mean(v)) if v else None for k, v in scale.items()}
    floor, ceiling = means["floor"], means["ceiling"]
    rankable = None if floor is None or ceiling is None else ceiling > 0 and ceiling >= RANKABLE * floor
    if rankable:
        mark(lines, cells, yard, retrains, out, recipe.draws, earlier)
    return {
        "dataset": dataset,
        "model": model,
        "request": ask.key,
        "title": f"{dataset}, {model}: {title_of(ask)}",
        "forget_kind": ask.kind,
        "forget_ratio": ask.share,
        "parts": ask.parts,
        "floor": _interval(scale["floor"]),
        "ceiling": _interval(scale["ceiling"]),
        "rankable": rankable,
        "lines": lines,
        "n_forget": _interval([r["n_forget"] for r in yard]),
    }


def _line(
    name: str,
    mine: Sequence[dict[str, Any]],
    failed: Sequence[dict[str, Any]],
    retrained: dict[int, list[float]],
    wanted: int,
    most: int,
) -> dict[str, Any]:
    """One line of a block; the retrains of a seed are averaged first, so that seeds weigh alike."""
    seeds = sorted({r["seed"] for r in mine})
    good = {s: [r for r in mine if r["seed"] == s] for s in seeds}
    for s in seeds:
        for row in good[s]:
            ours, theirs = row.get("test_auc"), retrained.get(s)
            if ours is not None and theirs and None not in theirs:
                row["auc_drop"] = float(np.mean(theirs)) - ours
    values = {}
    for column in (*rows.COLUMNS, *FURTHER):
        per_seed = [[r[column] for r in good[s] if r.get(column) is not None] for s in seeds]
        values[column] = _interval([float(np.mean(v)) for v in per_seed if v])
    failures = [{"seed": r["seed"], "text": r["failure"]} for r in failed]
    gaps: dict[str, str] = {}
    for row in mine:
        gaps |= {k: v for k, v in row["missing"].items() if not (of := values.get(k)) or of["n"] < len(seeds)}
    return {
        "name": name,
        "values": values,
        "seeds": seeds,
        "wanted": wanted,
        "fewer": len(seeds) < max(wanted, most),
        "models": sum(map(len, good.values())),
        "failures": failures,
        "missing": gaps,
        "verdicts": _verdicts(mine),
        "against": None,
        "against_excess": None,
    }


def _obstacles(out: Path, place: tuple[str, str], ask: Ask, lacking: Set[int]) -> list[dict[str, Any]]:
    """What the last sitting could not make, for seeds without references."""
    return [
        {"seed": one["seed"], "text": one["text"]}
        for one in read_lines(out / OBSTACLES, ("dataset", "model", "request", "seed", "text"))
        if (one["dataset"], one["model"]) == place
        and one["request"] in ("", ask.whole.key)
        and one["seed"] in lacking
    ]


def _standing(row: dict[str, Any], yard: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What counts of a cell: its row, the original's where that was handed back, None where it failed."""
    if not row["failure"]:
        return row
    same = next((r for r in yard if r["seed"] == row["seed"] and not r["failure"]), None)
    if same is None or not row["failure"].startswith(rows.NOTHING):
        return None
    costs = {**dict.fromkeys(rows.COSTS), "latency_ratio": None}
    why = {**same["missing"], **dict.fromkeys(costs, rows.NOTHING)}
    names = {key: row[key] for key in ("method", "request", "config_hash")}
    return {**same, **costs, **names, "missing": why, "predictions": None}


def _verdicts(good: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How many models were verified, and which checks refused the others; None where no row says."""
    said = [r["verdict"] for r in good if r.get("verdict")]
    if not said:
        return None
    count = Counter(name for one in said for name in one["failed"])
    return {
        "verified": sum(one["verified"] is True for one in said),
        "refused": sum(one["verified"] is False for one in said),
        "of": len(said),
        "by": dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))),
    }


def _interval(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean and half-width of the 95 % Student interval over seeds; no width with one seed."""
    kept = [v for v in values if v is not None and np.isfinite(v)]
    if not kept:
        return None
    half = None
    if len(kept) > 1:
        half = float(student.ppf(0.975, len(kept) - 1) * np.std(kept, ddof=1) / np.sqrt(len(kept)))
    return {"mean": float(np.mean(kept)), "half": half, "n": len(kept)}


def _pooled_residual(mine: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Residual of all seeds together: ``(mean jsd - mean floor) / (mean ceiling - mean floor)``.

    With two retrains a seed's floor is one pair's distance, and where it comes out near the ceiling that
    seed's own residual says nothing and outweighs all others in a mean. A seed whose floor lies above its
    ceiling counts like any other: left out, the others would be those with much to forget.

    Args:
        mine: rows of one line, each with ``jsd``, ``floor`` and ``ceiling``, nats.
    """
    found = by_seed(mine, lambda r: (r["jsd"], r["floor"], r["ceiling"]))
    return _ratio_of_means(list(found.values()))


def _pooled_excess(
    mine: Sequence[dict[str, Any]], yard: Sequence[dict[str, Any]], retrains: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """The same of the excess, jsd on D_f - jsd on D_c: 0 as the retrains among themselves, 1 as the original.

    Args:
        mine: rows of one line.
        yard, retrains: rows of the originals and of the retrains, for the two ends.
    """
    at = [by_seed(rows_, lambda r: (r.get("excess_jsd"),)) for rows_ in (mine, retrains, yard)]
    common = sorted(set(at[0]) & set(at[1]) & set(at[2]))
    return _ratio_of_means([np.concatenate([one[s] for one in at]) for s in common])


def _ratio_of_means(parts: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """``(mean x - mean zero) / (mean one - mean zero)`` over seeds, with the jackknife's interval.

    Where without one of the seeds there is no room between the ends, the interval is the linearised one.

    Args:
        parts: [x, zero, one] of each seed.

    Source: Cochran 1977, chapter 6 (ratio estimates; section 6.4); Tukey 1958 (jackknife).
    """
    if not len(parts):
        return None

    def ratio(chosen: np.ndarray) -> float:
        x, zero, one = chosen.sum(0)
        return float((x - zero) / (one - zero)) if one > zero else float("nan")

    values = np.array(parts)
    whole, n, half = ratio(values), len(values), None
    if not np.isfinite(whole):
        return None
    if n > 1:
        pseudo = [n * whole - (n - 1) * ratio(np.delete(values, k, 0)) for k in range(n)]
        error = float(np.std(pseudo, ddof=1)) if np.isfinite(pseudo).all() else np.nan
        if not np.isfinite(error):
            x, zero, one = values.T
            error = float(np.std(x - zero - whole * (one - zero), ddof=1) / np.mean(one - zero))
        half = float(student.ppf(0.975, n - 1) * error / np.sqrt(n))
    return {"mean": whole, "half": half, "n": n}


def _search(recipe: BenchRecipe, out: Path, counted: list[dict[str, Any]]) -> dict[str, Any] | None:
    if recipe.search is None:
        return None
    trials = _counted_trials(recipe, read_lines(out / "trials.jsonl", ("failure",)))
    at_an_end = dict.fromkeys(  # a choice may differ from one data set or model to another
        (row["method"], key, value)
        for row in counted
        if row.get("settings")
        for key, value in ends(row["settings"], grid_of(recipe, row["method"])).items()
    )
    return {
        "seed": recipe.search.seed,
        "trials": recipe.search.trials,
        "tolerance": recipe.search.tolerance,
        "target": recipe.search.target or "base",
        "run": len(trials),
        "failed": sum(bool(t["failure"]) for t in trials),
        "calibration": any("ece_rise" in t for t in trials),
        "ends": [{"method": method, "key": key, "value": value} for method, key, value in at_an_end],
    }


def _counted_trials(recipe: BenchRecipe, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each trial of the configuration in force.

    In a folder of an earlier version, whose configurations have other hashes, that of every trial.
    """
    names = ("dataset", "model", "method", "seed", "number", "config_hash")
    newest = {tuple(trial.get(n) for n in names): trial for trial in lines}
    mine = {
        (j.dataset, j.model, j.method, j.seed, j.number, config_hash(recipe, j))
        for j in plan(recipe)
        if j.kind == "trial"
    }
    return [t for key, t in newest.items() if key in mine] or [*newest.values()]
