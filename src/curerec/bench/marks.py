"""Marks of a block of the benchmark: which methods differ from ours.

From the answers to single examples where they are at hand. Where only rows were kept, the error that the
summary beside them had from those answers still holds, as long as it is of the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from curerec.bench import artefacts
from curerec.bench.recipe import TWINS
from curerec.bench.significance import (
    LEAST_SEEDS,
    LEAST_SEEDS_ALONE,
    LEVEL,
    Compared,
    Yard,
    compared,
    compared_means,
    error_of,
    holm,
)
from curerec.evaluation.inputs import p_yes
from curerec.reports.schema import is_retrain

OURS = next(iter(TWINS))
SAME = 1e-6  # differences of one set of rows, written and read again
#: What an earlier summary found of a block: by line, ``against`` and ``against_excess``.
Earlier = Mapping[str, Mapping[str, Any]]


def mark(
    lines: list[dict[str, Any]],
    cells: list[dict[str, Any]],
    yard: list[dict[str, Any]],
    retrains: list[dict[str, Any]],
    out: Path,
    draws: int,
    earlier: Earlier,
) -> None:
    """Compare our method with each other one of a block; p-values are corrected for how many there are.

    Where there is no comparison, the line's ``missing`` says why under ``against`` or ``against_excess``.

    Args:
        lines: of the block; marked in place.
        cells, yard, retrains: rows of the methods, the originals and the retrains.
        out: folder of the run.
        draws: of the bootstrap over examples.
        earlier: what the summary in the folder says of the block.
    """
    (yards, said), (unseen, elsewhere) = (_side(part, cells, yard, out) for part in ("forget", "control"))
    good = [r for r in cells if not r["failure"]]
    of = {line["name"]: [r for r in good if r["method"] == line["name"]] for line in lines}
    if not of.get(OURS):
        return
    ends = [by_seed(rows_, lambda r: (r.get("excess_jsd"),)) for rows_ in (retrains, yard)]
    residual: dict[str, Compared] = {}
    excess: dict[str, Compared] = {}
    for line in (line for line in lines if of[line["name"]] and line["name"] != OURS):
        name, none = line["name"], line["missing"]
        seeds = {r["seed"] for r in of[OURS]} & {r["seed"] for r in of[name]}
        pair, less = (
            (said.get(OURS, {}), said.get(name, {})),
            (elsewhere.get(OURS, {}), elsewhere.get(name, {})),
        )
        if kept := all(seeds <= set(one) for one in (yards, *pair)):
            found = compared(yards, *pair, draws=draws)
        else:
            found = _from_rows(_means(seeds, of[OURS], of[name]), earlier.get(name, {}).get("against"))
        if found is not None:
            residual[name] = found
        else:
            none["against"] = why_none(len(seeds), kept)
        common = sorted(seeds)
        if kept := all(seeds <= set(one) for one in (yards, *pair, unseen, *less)):
            found = compared(yards, *pair, less=(unseen, *less), draws=draws)
        else:
            sides = [by_seed(of[n], lambda r: (r.get("excess_jsd"),)) for n in (OURS, name)]
            common = sorted(set.intersection(*(set(one) for one in (*sides, *ends))))
            means = [np.concatenate([one[s] for one in (*sides, *ends)]) for s in common]
            found = _from_rows(means, earlier.get(name, {}).get("against_excess"))
        if found is not None:
            excess[name] = found
        else:
            none["against_excess"] = why_none(len(common), kept)
    for key, all_ in (("against", residual), ("against_excess", excess)):
        adjusted = dict(zip(all_, holm([one.p for one in all_.values()]), strict=True))
        for line in lines:
            one = all_.get(line["name"])
            if one is not None:
                p = adjusted[line["name"]]
                line[key] = {**asdict(one), "p_holm": p, "significant": p < LEVEL}


def why_none(seeds: int, kept: bool) -> str:
    """Why there is no comparison over so many seeds.

    Args:
        seeds: that both methods have.
        kept: whether the answers to single examples are at hand.

    Example:
        >>> why_none(2, True)
        'fewer than 3 seeds in common'
    """
    if seeds < LEAST_SEEDS:
        return f"fewer than {LEAST_SEEDS} seeds in common"
    if not kept and seeds < LEAST_SEEDS_ALONE:
        return f"single answers were not kept, and without them it takes {LEAST_SEEDS_ALONE} seeds"
    return "what was to be forgotten is too little for a difference to be told from none"


def _from_rows(means: Sequence[np.ndarray], earlier: Mapping[str, Any] | None) -> Compared | None:
    """The comparison from rows, with the error that an earlier one of the same rows had from the answers."""
    if earlier and earlier.get("by", "examples") == "examples" and earlier["seeds"] == len(means):
        error = error_of(earlier["low"], earlier["high"], earlier["seeds"])
        found = compared_means(means, least_error=error)
        if found and abs(found.difference - earlier["difference"]) < SAME:
            return found
    return compared_means(means)


def _means(seeds: set[int], ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[np.ndarray]:
    """[ours, theirs, floor, ceiling] of each seed, nats, from rows."""
    sides = [by_seed(rows_, lambda r: (r["jsd"], r["floor"], r["ceiling"])) for rows_ in (ours, theirs)]
    return [np.r_[sides[0][s][0], sides[1][s]] for s in sorted(seeds) if s in sides[0] and s in sides[1]]


_Side = tuple[dict[int, Yard], dict[str, dict[int, np.ndarray]]]


def _side(part: str, cells: list[dict[str, Any]], yard: list[dict[str, Any]], out: Path) -> _Side:
    """Yards by seed, and P(yes) by method and seed, on D_f or D_c; without cells that kept none."""
    yards = {r["seed"]: y for r in yard if (y := _yard(out, r, part)) is not None}
    said: dict[str, dict[int, np.ndarray]] = {}
    for row in cells:
        arrays = None if row["failure"] else _predictions(out, row)
        if arrays is not None and part in arrays:
            said.setdefault(row["method"], {})[row["seed"]] = arrays[part].astype(np.float64)
    return yards, said


def _yard(out: Path, row: dict[str, Any], part: str) -> Yard | None:
    arrays = artefacts.read_arrays(out / artefacts.YARDSTICKS / row["yardstick"])
    if arrays is None or f"original/{part}" not in arrays:
        return None
    names = sorted(set(filter(is_retrain, (name.split("/")[0] for name in arrays))))
    if len(names) < 2:
        return None
    return Yard.of(p_yes(arrays[f"original/{part}"]), np.stack([p_yes(arrays[f"{n}/{part}"]) for n in names]))


def _predictions(out: Path, row: dict[str, Any]) -> artefacts.Arrays | None:
    """P(yes) by part; the original's where the method handed that back."""
    if row["predictions"] is not None:
        return artefacts.read_arrays(out / artefacts.PREDICTIONS / row["predictions"])
    arrays = artefacts.read_arrays(out / artefacts.YARDSTICKS / row["yardstick"]) or {}
    return {k.removeprefix("original/"): p_yes(z) for k, z in arrays.items() if k.startswith("original/")}


def by_seed(
    found: Sequence[dict[str, Any]], values: Callable[[dict[str, Any]], tuple[float | None, ...]]
) -> dict[int, np.ndarray]:
    """Means of some values of the rows of each seed; rows that lack one are left out."""
    out: dict[int, list[tuple[float | None, ...]]] = {}
    for row in found:
        if None not in (one := values(row)):
            out.setdefault(row["seed"], []).append(one)
    return {s: np.mean(np.array(rows_, float), axis=0) for s, rows_ in sorted(out.items())}
