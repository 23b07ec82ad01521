"""The committed rows by request and run, which the means over all hide; settings that were left, too.

After them how far the other methods are from ``cure``, from the summary.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

# Other requests have seeds 51 and 52 alone; the first request is shown for them, too.
RUNS = ((40, 44), (51, 52), (51, 55), (56, 60))
DATASETS = ("ml-100k", "goodbooks-10k")
METHODS = ("cure", "random_modules", "pcgrad", "cagrad", "npo", "e2urec")
COLUMNS = [
    "data",
    "request",
    "seeds",
    "method",
    "config",
    "residual",
    "excess",
    "gap",
    "relearn",
    "AUC-above-retrain",
    "seconds",
    "of-a-retrain",
    "residual-by-seed",
]


def main() -> None:
    """Print a line a run, method and configuration, then a line a request and method."""
    text = Path(__file__).with_name("rows.jsonl").read_text(encoding="utf-8")
    every = [r for r in map(json.loads, text.splitlines()) if not r["failure"]]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for dataset in DATASETS:
        by_run(dataset, [r for r in every if r["dataset"] == dataset])
    differences()


def by_run(dataset: str, rows: list[dict[str, Any]]) -> None:
    """Print the lines of one data set."""
    for request in dict.fromkeys(r["request"] for r in rows):
        for first, last in RUNS:
            run = [r for r in rows if first <= r["seed"] <= last]
            mine = [r for r in run if r["request"] == request]
            parts = max((r["forget_parts"] for r in mine), default=1)
            ends = [r for r in run if r["request"] == request.removesuffix(f"-x{parts}")]
            if len({r["seed"] for r in mine}) == last - first + 1:
                show(f"| {dataset} | {request} | {first} to {last}", mine, ends)


def differences() -> None:
    """Print the paired differences of the methods to ``cure``, as the summary has them."""
    summary = json.loads(Path(__file__).with_name("summary.json").read_text(encoding="utf-8"))
    print(
        "\n| request | method | of | farther than cure | low | high | p | after Holm | seeds |\n"
        + "|---" * 9
        + "|"
    )
    for block in summary["blocks"]:
        for line in block["lines"]:
            for of, key in (("residual", "against"), ("excess", "against_excess")):
                if found := line[key]:
                    # The summary has cure minus the other.
                    shown = [-found["difference"], -found["high"], -found["low"], found["p"], found["p_holm"]]
                    numbers = " | ".join(f"{x:.3f}" for x in shown)
                    print(f"| {block['title']} | {line['name']} | {of} | {numbers} | {found['seeds']} |")


def show(head: str, rows: list[dict[str, Any]], ends: list[dict[str, Any]]) -> None:
    """Print the lines of one request and run.

    Args:
        head: first cells of every line.
        rows: of the methods.
        ends: rows of the original and the retrains; of a sequence those of the request in one piece.
    """
    retrains = [r for r in ends if r["method"].startswith("retrain")]
    original = [r for r in ends if r["method"] == "original"]
    for method in METHODS:
        by_config = defaultdict(list)
        for r in rows:
            if r["method"] == method:
                by_config[r["config_hash"][:6]].append(r)
        for config, mine in by_config.items():
            floor, none = mean(mine, "floor"), mean(retrains, "excess_jsd")
            shown = (
                (mean(mine, "jsd") - floor) / (mean(original, "jsd") - floor),
                (mean(mine, "excess_jsd") - none) / (mean(original, "excess_jsd") - none),
                mean(mine, "membership_gap"),
                mean(mine, "relearn_ratio"),
                mean(mine, "test_auc") - mean(retrains, "test_auc"),
                mean(mine, "t_total"),
                float(np.median([r["retrain_ratio"] for r in mine])),
            )
            numbers = " | ".join(f"{x:.3f}" for x in shown)
            single = " ".join(f"{r['residual']:.2f}" for r in sorted(mine, key=lambda r: int(r["seed"])))
            print(f"{head} | {method} | {config} | {numbers} | {single} |")


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """Mean of what was measured; nan where nothing was."""
    found = [r[key] for r in rows if r.get(key) is not None]
    return float(np.mean(found)) if found else float("nan")


if __name__ == "__main__":
    main()
