"""How much nearer to the retrains `cure` lies than other methods, seed by seed, over several runs.

`python benchmarks/quality/over_seeds.py FOLDER...`: no two folders have a method on the same seed; settings
may differ, which the reader has to bear in mind. Prints the mean difference of the residuals with its t
interval over seeds, on how many seeds `cure` is nearer, the p of Wilcoxon's signed-rank test, and that of
the t test after Holm's correction for all that are named: what is called told has that under .05.
`METHOD@MODEL` is a method with another model of the recipe: `cure@base` for `cure` with the settings that
the recipe calls so; the methods of a folder under `--named NAME=FOLDER` are all `METHOD@NAME`. `--change
NAME` asks how much farther from `cure` each method has become: `METHOD` less `cure`, against `METHOD@NAME`
less `cure@NAME`. `METHOD/REQUEST` is a method on another request of the same seeds:
`cure/users-0.1-random-x10`. Where a folder has the second of `--instead NAME=OTHER`, that stands there for
the first (`cure=cure@one_arm`; one name may have several, for folders that call it differently). The last
column is the difference of the ratios of means, as `curerec bench --table` has them, with the jackknife's
interval over seeds: a seed with little to forget weighs less in it, and one whose ceiling is not above its
floor counts in it alone. Below the table stands the mean of `cure`'s own
residuals, and of their absolute values where one is below 0; where the
retrains of some seeds differ by more than half of what was to be forgotten,
which rank nothing by themselves, the same again without them; and what a
reader has to know of the seeds: on which a method handed the original back
(which counts as its residual), on which it has none and why, on which it was
measured beside other retrains than `cure`, and on which the retrains differ so
much. `--means` prints instead each method's own values, the mean over seeds
and the half-width of its t interval; a seed's retrains count as one.
`--without SEED...` leaves seeds out. Of several data sets (`--dataset ml-100k
goodbooks-10k`) all seeds are taken together, in pairs inside each. `--column
relearn_ratio` compares another column than the residual, on the seeds on which
both methods have it.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from curerec.bench.rows import NOTHING, newest, whole_of
from curerec.bench.significance import holm

ANSWERS = ("residual", "membership_gap", "test_auc", "test_ece")
COSTS = ("retrain_ratio", "trainable_parameters", "circuit_size")
MEANS = (*ANSWERS, "relearn_ratio", "verified", *COSTS)
#: Of the original, where a method hands it back; what its training cost is no cost of the method.
KEPT = (*ANSWERS, "jsd", "floor", "ceiling", "excess_jsd", "rankable", "verdict")
NO_ROOM = "the ceiling is not above the floor (it counts in the ratios of means alone)"
Found = dict[str, dict[int, float]]  # by method and seed
Rows = dict[str, dict[int, dict[str, Any]]]  # the same


def rows_of(
    folders: list[Path],
    dataset: str,
    request: str,
    model: str,
    without: list[int],
    instead: list[tuple[str, str]],
    named: dict[Path, str],
) -> Rows:
    """Rows by method and seed; of other models than this by ``method@model``, of others by request.

    Where a method handed the original back, the original's figures are its own, and ``handed_back`` is true.

    Raises:
        SystemExit: two folders have a row of the same method and seed (but for the same original, base or
            retrain), or one has rows of it with several settings.
    """
    found: Rows = {}
    texts = [(folder / "rows.jsonl").read_text(encoding="utf-8") for folder in folders]
    held = [newest([json.loads(line) for line in text.splitlines()]) for text in texts]
    originals = {beside(row): row for rows in held for row in rows if row["method"] == "original"}
    for folder, rows in zip(folders, held, strict=True):
        mine: Rows = {}
        settings: dict[tuple[str, int], str] = {}
        chosen: dict[str, str] = {}
        for row in rows:
            if row["dataset"] == dataset and row["seed"] not in without:
                name = row["method"] if row["model"] == model else f"{row['method']}@{row['model']}"
                name = f"{row['method']}@{named[folder]}" if folder in named else name
                name += "" if row["request"] == request else f"/{row['request']}"
                if settings.setdefault((name, row["seed"]), row["config_hash"]) != row["config_hash"]:
                    raise SystemExit(f"{folder}: {name} has rows of several settings of seed {row['seed']}")
                choice = json.dumps(row.get("settings"), sort_keys=True)
                if row.get("settings") is not None and chosen.setdefault(name, choice) != choice:
                    raise SystemExit(f"{folder}: {name} has rows of several choices of the search")
                mine.setdefault(name, {})[row["seed"]] = as_it_ended(row, originals.get(beside(row)))
        for name, other in instead:
            if other in mine:
                mine[name] = mine.pop(other)
        for method, values in mine.items():
            there = found.get(method, {})
            twice = {seed for seed in set(values) & set(there) if not the_same(values[seed], there[seed])}
            if twice:
                raise SystemExit(
                    f"{folder}: {method} has rows of seeds {sorted(twice)} in another folder, too"
                )
            found.setdefault(method, {}).update(values)
    return found


def the_same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are of one model: originals and retrains that two runs share stand in both."""
    once = row["method"] in ("original", "base") or row["method"].startswith("retrain")
    return once and all(row.get(key) == other.get(key) for key in ("jsd", "floor", "ceiling"))


def beside(row: dict[str, Any]) -> tuple[Any, ...]:
    """Which original a row stands beside: a sequence has that of the same request in one piece."""
    return row["dataset"], row["model"], whole_of(row["request"]), row["seed"]


def as_it_ended(row: dict[str, Any], original: dict[str, Any] | None) -> dict[str, Any]:
    """A row; with the original's figures where the method handed that back."""
    if original is None or not (row.get("failure") or "").startswith(NOTHING):
        return row
    was = {c: original.get(c) for c in KEPT}
    return {**row, **was, **dict.fromkeys(COSTS), "handed_back": True}


def values_of(column: str, rows: Rows) -> Found:
    """A column by method and seed, where it has a value; ``verified`` is 1 where the verdict says so."""
    if column == "verified":
        said = {name: {s: row.get("verdict") for s, row in of.items()} for name, of in rows.items()}
        return {n: {s: float(v["verified"] is True) for s, v in of.items() if v} for n, of in said.items()}
    return {
        name: {seed: row[column] for seed, row in of.items() if row.get(column) is not None}
        for name, of in rows.items()
    }


def of_means(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[float, float, float]:
    """The difference of two methods' ratios of means, with the jackknife's 95 % interval.

    Args:
        pairs: rows of ours and of the other's, one pair a seed.
    """
    ends = [[(row["jsd"] - row["floor"], row["ceiling"] - row["floor"]) for row in pair] for pair in pairs]
    values = np.array(ends)  # [pairs, ours and the other's, what is left and the room]
    n, total = len(pairs), values.sum(0)

    def apart(sums: np.ndarray) -> np.ndarray:
        ours, other = np.moveaxis(sums[..., 0] / sums[..., 1], -1, 0)
        return np.asarray(other - ours)

    whole, left = apart(total), apart(total - values)
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) * np.mean((left - left.mean()) ** 2))
    return float(whole), float(whole - half), float(whole + half)


def pairs_of(by_data: dict[str, Rows], other: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of `cure` and of another, one pair a seed on which both were measured."""
    pairs = [
        (rows["cure"][seed], rows[other][seed])
        for rows in by_data.values()
        for seed in sorted(set(rows["cure"]) & set(rows[other]))
    ]
    return [p for p in pairs if all(row.get("jsd") is not None for row in p)]


def remarks(by_data: dict[str, Rows], methods: list[str]) -> list[str]:
    """What a reader has to know of single seeds."""
    said = []
    for dataset, rows in by_data.items():
        for name in methods:
            of = sorted(rows[name].items())
            back = [seed for seed, row in of if row.get("handed_back")]
            none = [(s, row.get("failure") or NO_ROOM) for s, row in of if row.get("residual") is None]
            other = [s for s, row in of if s in rows["cure"] and not same_scale(row, rows["cure"][s])]
            if back:
                said.append(
                    f"{dataset}: {name} handed the original back on {_listed(back)}; it counts as that"
                )
            said += [f"{dataset}: {name} is left out on {seed}: {why}" for seed, why in none]
            if other:
                said.append(
                    f"{dataset}: on {_listed(other)} {name} was measured beside other retrains than `cure`"
                )
        if few := noisy(rows):
            said.append(
                f"{dataset}: on {_listed(few)} the retrains differ by more than half of what was to be "
                "forgotten: by themselves these seeds rank nothing"
            )
    return said


def lacking(by_data: dict[str, Rows], methods: list[str], column: str) -> list[str]:
    """Which seeds a method has no value of a column on."""
    said = []
    for dataset, rows in by_data.items():
        for name in methods:
            if none := [seed for seed, row in sorted(rows[name].items()) if row.get(column) is None]:
                said.append(f"{dataset}: {name} has no {column} on {_listed(none)} and is left out there")
    return said


def same_scale(*pair: dict[str, Any]) -> bool:
    """Whether two rows have the floor and the ceiling of one set of retrains, as far as they have any."""
    ends = [[row[c] for row in pair if row.get(c) is not None] for c in ("floor", "ceiling")]
    return all(np.allclose(values, values[:1], rtol=1e-3, atol=0) for values in ends)


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def means(values: dict[str, Found], others: list[str]) -> str:
    """A line a method: means over its seeds with the half-width of their 95 % interval, and the residuals."""
    for of in values.values():
        again = [of[name] for name in of if re.fullmatch(r"retrain_\d+", name)]
        first = of.get("retrain", {})
        of["retrain"] = {s: float(np.mean([first[s], *(r[s] for r in again if s in r)])) for s in first}
    lines = [f"| method | seeds | {' | '.join(MEANS)} | residuals |", "|---" * (len(MEANS) + 3) + "|"]
    for name in ("original", "base", "retrain", "cure", *others):
        cells = []
        for column in MEANS:
            x = np.array([*values[column].get(name, {}).values()])
            half = stats.t.ppf(0.975, len(x) - 1) * stats.sem(x) if len(x) > 1 else np.nan
            cells.append(f"{x.mean():.3f} ± {half:.3f}" if len(x) else "–")
        single = [f"{seed}: {r:.2f}" for seed, r in sorted(values["residual"].get(name, {}).items())]
        lines.append(f"| {name} | {len(single)} | {' | '.join(cells)} | {', '.join(single)} |")
    ends = [np.mean([*values[c]["cure"].values()]) for c in ("floor", "ceiling")]
    return "\n".join([*lines, f"\nfloor {ends[0]:.4f}, ceiling {ends[1]:.4f} nats"])


def changes(by_data: dict[str, Rows], others: list[str], before: str) -> str:
    """A line a method: how much its distance to `cure` has changed, seed by seed, with its interval."""
    apart: dict[str, np.ndarray] = {}
    for other in others:
        names = (other, "cure", f"{other}@{before}", f"cure@{before}")
        found = []
        for rows in by_data.values():
            values = [values_of("residual", rows)[name] for name in names]
            for seed in sorted(set.intersection(*map(set, values))):
                new, ours, old, ours_then = (of[seed] for of in values)
                found.append((new - ours) - (old - ours_then))
        apart[other] = np.array(found)
    alone = [float(stats.ttest_1samp(more, 0.0).pvalue) for more in apart.values()]
    lines = [
        "| method | seeds | farther from `cure` by | 95 % over seeds | on | p, t, Holm |",
        "|---" * 6 + "|",
    ]
    for (other, more), corrected in zip(apart.items(), holm(alone), strict=True):
        low, high = stats.t.interval(0.95, len(more) - 1, more.mean(), stats.sem(more))
        lines.append(
            f"| {other} | {len(more)} | {more.mean():+.3f} | {low:.3f} to {high:.3f} "
            f"| {(more > 0).sum()} of {len(more)} | {corrected:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--dataset", nargs="+", default=["ml-100k"])
    parser.add_argument("--request", default="users-0.1-random")
    parser.add_argument("--model", default="nano", help="its name in the recipe")
    parser.add_argument("--without", type=int, nargs="+", default=[], help="seeds that are left out")
    parser.add_argument(
        "--instead", nargs="+", default=[], metavar="NAME=OTHER", help="in folders that have the other"
    )
    parser.add_argument(
        "--named", nargs="+", default=[], metavar="NAME=FOLDER", help="more folders, by a name"
    )
    parser.add_argument("--change", metavar="NAME", help="of the distances, against those of this name")
    parser.add_argument("--column", default="residual", help="of the rows, that is compared")
    parser.add_argument("--means", action="store_true", help="each method's own values")
    parser.add_argument("--others", nargs="+", default=["pcgrad", "npo", "random_modules"])
    options = parser.parse_args()
    if options.means and len(options.dataset) > 1:
        parser.error("--means is of one data set: a mean over several is of no model")
    named = {Path(folder): name for name, folder in (pair.split("=", 1) for pair in options.named)}
    wanted = [*options.others]
    if options.change:
        wanted = [f"{name}{of}" for name in ("cure", *wanted) for of in ("", f"@{options.change}")]
    by_data = {}
    for dataset in options.dataset:
        instead = [(name, other) for name, _, other in (pair.partition("=") for pair in options.instead)]
        folders = [*options.folders, *named]
        where = folders, dataset, options.request, options.model, options.without, instead, named
        rows = by_data[dataset] = rows_of(*where)
        if absent := sorted({"cure", *wanted} - set(rows)):
            parser.error(
                f"no rows of {', '.join(absent)} for {options.request} on {dataset} in these folders: "
                "name --dataset, --request or --others"
            )
    if options.means:
        print(means({c: values_of(c, rows) for c in ("floor", "ceiling", *MEANS)}, options.others))
        for column in (*ANSWERS, "relearn_ratio", "verdict"):
            has = [
                m
                for m in ("cure", *options.others)
                if any(r.get(column) is not None for r in rows[m].values())
            ]
            for remark in lacking(by_data, has, column):
                print(f"- {remark}")
        return
    if options.change:
        print(changes(by_data, options.others, options.change))
        return
    print(comparison(by_data, options.others, options.column, parser))
    if options.column == "residual" and any(noisy(rows) for rows in by_data.values()):
        kept = {dataset: without(rows, noisy(rows)) for dataset, rows in by_data.items()}
        if all(len(pairs_of(kept, other)) > 1 for other in options.others):
            print("\nWithout the seeds on which the retrains differ so much:\n")
            print(comparison(kept, options.others, options.column, parser))
    methods = ["cure", *options.others]
    said = remarks if options.column == "residual" else functools.partial(lacking, column=options.column)
    print("")
    for remark in said(by_data, methods):
        print(f"- {remark}")


def noisy(rows: Rows) -> list[int]:
    """Seeds whose ceiling is less than twice the floor: by themselves they rank nothing."""
    return [seed for seed, row in sorted(rows["cure"].items()) if row.get("rankable") is False]


def without(rows: Rows, seeds: list[int]) -> Rows:
    """The rows of all other seeds."""
    return {name: {s: row for s, row in of.items() if s not in seeds} for name, of in rows.items()}


def comparison(
    by_data: dict[str, Rows], others: list[str], column: str, parser: argparse.ArgumentParser
) -> str:
    """A line a method: how far from `cure` it lies, in pairs; below, the mean of `cure`'s own."""
    paired = {other: pairs_of(by_data, other) for other in others}
    both = {o: [(a.get(column), b.get(column)) for a, b in of] for o, of in paired.items()}
    apart = {o: np.array([b - a for a, b in of if None not in (a, b)]) for o, of in both.items()}
    if few := [other for other, more in apart.items() if len(more) < 2]:
        parser.error(f"{', '.join(few)}: fewer than two seeds on which `cure` has a {column}, too")
    of_residuals = column == "residual"
    near = "`cure` nearer on" if of_residuals else "`cure`'s is less on"
    heads = ["method", "seeds", f"{column} less `cure`'s", "95 % over seeds", near]
    heads += ["p of ranks", "p, t, Holm", *["of the means"] * of_residuals]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    alone = [float(stats.ttest_1samp(more, 0.0).pvalue) for more in apart.values()]
    for (other, more), corrected in zip(apart.items(), holm(alone), strict=True):
        low, high = stats.t.interval(0.95, len(more) - 1, more.mean(), stats.sem(more))
        p = stats.wilcoxon(more).pvalue
        lines.append(
            f"| {other} | {len(more)} | {more.mean():+.3f} | {low:.3f} to {high:.3f} "
            f"| {(more > 0).sum()} of {len(more)} | {p:.4f} | {corrected:.4f} |"
            + (" {:+.3f} ({:.3f} to {:.3f}) |".format(*of_means(paired[other])) if of_residuals else "")
        )
    own = np.array([r for rows in by_data.values() for r in values_of(column, rows)["cure"].values()])
    low, high = stats.t.interval(0.95, len(own) - 1, own.mean(), stats.sem(own))
    what = column.replace("_", " ")
    ours = f"`cure`'s {what}s: mean {own.mean():.3f} ({low:.3f} to {high:.3f}), {len(own)} seeds"
    if (own < 0).any():  # a model past its retrains' distance from each other hides one that is short of it
        ours += f"; of their absolute values {np.abs(own).mean():.3f}"
    return "\n".join([*lines, "", ours])


if __name__ == "__main__":
    main()
