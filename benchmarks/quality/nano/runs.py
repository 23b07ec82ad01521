"""The committed rows by run of five seeds, which the means over all hide; settings that were left, too."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

RUNS = ((40, 44), (51, 55), (56, 60))
METHODS = ("cure", "random_modules", "pcgrad", "cagrad", "npo", "e2urec")
COLUMNS = [
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
]


def main() -> None:
    """Print a line a run, method and configuration."""
    text = Path(__file__).with_name("rows.jsonl").read_text(encoding="utf-8")
    rows = [r for r in map(json.loads, text.splitlines()) if r["dataset"] == "ml-100k" and not r["failure"]]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for first, last in RUNS:
        run = [r for r in rows if first <= r["seed"] <= last]
        retrains = [r for r in run if r["method"].startswith("retrain")]
        original = [r for r in run if r["method"] == "original"]
        for method in METHODS:
            by_config = defaultdict(list)
            for r in run:
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
                figures = " | ".join(f"{x:.3f}" for x in shown)
                print(f"| {first} to {last} | {method} | {config} | {figures} |")


def mean(rows: list[dict[str, Any]], key: str) -> float:
    """Mean of what was measured; nan where nothing was."""
    found = [r[key] for r in rows if r.get(key) is not None]
    return float(np.mean(found)) if found else float("nan")


if __name__ == "__main__":
    main()
