"""Print the table of results.jsonl: mean and 95 % interval over seeds, for the newest configuration."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import t as student

HERE = Path(__file__).parent
COLUMNS = {
    "test_auc": "test AUC",
    "jsd": "JSD",
    "residual": "residual",
    "membership_auc": "membership AUC",
    "membership_gap": "gap",
    "t_total_s": "t_total, s",
    "retrain_ratio": "of retrain",
}


def main() -> None:
    """Read, group, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
    newest = max(rows, key=lambda r: r["created"])
    rows = [r for r in rows if r["config_hash"] == newest["config_hash"]]
    seeds = sorted({r["seed"] for r in rows})
    first = {r["seed"]: r for r in rows}
    floors, ceilings = ([first[s][k] for s in seeds] for k in ("floor_jsd", "ceiling_jsd"))
    print(f"seeds {seeds}; floor {interval(floors)}, ceiling {interval(ceilings)} nats\n")
    print("| model | " + " | ".join(COLUMNS.values()) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = [r for r in rows if r["model"] == model]
        cells = [interval([r[c] for r in mine if r.get(c) is not None]) for c in COLUMNS]
        print(f"| {model} | " + " | ".join(cells) + " |")
    print()
    of = {(r["model"], r["seed"]): r for r in rows}
    for model in ("random_modules", "npo", "ga_kl"):
        both = [s for s in seeds if (model, s) in of and ("cure", s) in of]
        paired = [of[model, s]["residual"] - of["cure", s]["residual"] for s in both]
        each = ", ".join(f"{d:.3f}" for d in paired)
        print(f"residual of {model} minus cure's, seed by seed: {interval(paired)} ({each})")
    verified = [of["cure", s]["verified"] for s in seeds if ("cure", s) in of]
    print(f"cure verified on {sum(map(bool, verified))} of {len(verified)} seeds")


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % Student interval."""
    if not values:
        return ""
    mean = float(np.mean(values))
    digits = 4 if abs(mean) < 0.1 else 3 if abs(mean) < 2 else 1
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


if __name__ == "__main__":
    main()
