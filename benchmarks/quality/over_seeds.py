"""How much nearer to the retrains `cure` lies than other methods, seed by seed, over several runs.

`python benchmarks/quality/over_seeds.py FOLDER...`: the folders' seeds must differ; so may their settings,
which the reader has to bear in mind. Prints the mean difference of the residuals with its t interval over
seeds, on how many seeds `cure` is nearer, and the p of Wilcoxon's signed-rank test. `METHOD@MODEL` is a
method with another model of the recipe: `cure@base` for `cure` with the settings that the recipe calls so.
`METHOD/REQUEST` is a method on another request of the same seeds: `cure/users-0.1-random-x10`. Below the
table stands the mean of `cure`'s own residuals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats


def residuals(folders: list[Path], dataset: str, request: str, model: str) -> dict[str, dict[int, float]]:
    """Residual by method and seed; of other models than this by ``method@model``, of others by request.

    Raises:
        SystemExit: two folders have a row of the same method and seed.
    """
    found: dict[str, dict[int, float]] = {}
    for folder in folders:
        mine: dict[str, dict[int, float]] = {}
        for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["dataset"] == dataset and row.get("residual") is not None:
                name = row["method"] if row["model"] == model else f"{row['method']}@{row['model']}"
                name += "" if row["request"] == request else f"/{row['request']}"
                mine.setdefault(name, {})[row["seed"]] = row["residual"]
        for method, values in mine.items():
            twice = set(values) & set(found.get(method, {}))
            if twice:
                raise SystemExit(
                    f"{folder}: {method} has rows of seeds {sorted(twice)} in another folder, too"
                )
            found.setdefault(method, {}).update(values)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--request", default="users-0.1-random")
    parser.add_argument("--model", default="nano", help="its name in the recipe")
    parser.add_argument("--others", nargs="+", default=["pcgrad", "npo", "random_modules"])
    options = parser.parse_args()
    found = residuals(options.folders, options.dataset, options.request, options.model)
    if absent := sorted({"cure", *options.others} - set(found)):
        parser.error(
            f"no rows of {', '.join(absent)} for {options.request} on {options.dataset} in these folders: "
            "name --dataset, --request or --others"
        )
    print(
        "| method | seeds | residual less `cure`'s | 95 % over seeds | `cure` nearer on | p |\n"
        + "|---" * 6
        + "|"
    )
    for other in options.others:
        seeds = sorted(set(found["cure"]) & set(found[other]))
        more = np.array([found[other][s] - found["cure"][s] for s in seeds])
        low, high = stats.t.interval(0.95, len(more) - 1, more.mean(), stats.sem(more))
        p = stats.wilcoxon(more).pvalue
        print(
            f"| {other} | {len(seeds)} | {more.mean():+.3f} | {low:.3f} to {high:.3f} "
            f"| {(more > 0).sum()} of {len(more)} | {p:.4f} |"
        )
    own = np.array([*found["cure"].values()])
    low, high = stats.t.interval(0.95, len(own) - 1, own.mean(), stats.sem(own))
    print(f"\n`cure`'s residuals: mean {own.mean():.3f} ({low:.3f} to {high:.3f}), {len(own)} seeds")


if __name__ == "__main__":
    main()
