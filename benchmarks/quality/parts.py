"""What a residual is made of: memory of the deleted data, and what sets a model apart on data of nobody.

residual = [(jsd_f - jsd_c) - (a retrain's)] / room + [jsd_c - a retrain's] / room, where jsd_f is on D_f and
jsd_c on D_c, both to the retrains, and room = ceiling - floor. The first term is memory: 0 for a retrain. The
second is there for the original, too: what it learned from D_f it answers everyone by.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from curerec.bench.rows import NOTHING, newest, whole_of

KEPT = ("residual", "excess_jsd", "floor", "ceiling")
NO_ROOM = "the ceiling is not above the floor"
COLUMNS = ("data", "request", "method", "seeds", "residual", "of it memory", "of it not", "by seed")


def main() -> None:
    """Print a line a data set, request and method, over the seeds that have it, of the newest settings.

    A seed whose ceiling is not above its floor has no residual to be parted, and is named below the table.

    Raises:
        SystemExit: a method has rows of several choices of the search.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="of benchmarks: with rows.jsonl")
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--model", default="nano", help="its name in the recipe")
    options = parser.parse_args()
    texts = [(folder / "rows.jsonl").read_text(encoding="utf-8") for folder in options.folders]
    lines = [line for text in texts for line in text.splitlines()]
    rows = [row for row in newest([json.loads(line) for line in lines]) if row["model"] == options.model]
    rows = [row for row in as_they_ended(rows) if row.get("excess_jsd") is not None]
    left_out: list[str] = []
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for data, request in dict.fromkeys((r["dataset"], r["request"]) for r in rows if r["request"]):
        here = [r for r in rows if r["dataset"] == data]
        ends = [r for r in here if r["request"] == request]
        whole = whole_of(request)  # requests in a row are held against retrains without all of them
        retrains: dict[int, list[float]] = {}
        for r in here:
            if r["method"].startswith("retrain") and r["request"] in (request, whole):
                retrains.setdefault(r["seed"], []).append(r["excess_jsd"])
        for method in dict.fromkeys(r["method"] for r in ends):
            if method.startswith("retrain") or (options.methods and method not in options.methods):
                continue
            mine = [r for r in ends if r["method"] == method and r["seed"] in retrains]
            mine = [r for r in mine if r["config_hash"] == mine[-1]["config_hash"]]
            said = {json.dumps(s, sort_keys=True) for r in mine if (s := r.get("settings")) is not None}
            if len(said) > 1:
                raise SystemExit(f"{data}, {request}: {method} has rows of several choices of the search")
            none = [str(r["seed"]) for r in mine if r["residual"] is None]
            if none:
                seeds = ", ".join(sorted(none, key=int))
                left_out.append(f"{data}, {request}: {method} is left out on {seeds}: {NO_ROOM}")
            parts = [
                parted(r, float(np.mean(retrains[r["seed"]])))
                for r in sorted(mine, key=lambda r: int(r["seed"]))
                if r["residual"] is not None
            ]
            if not parts:
                continue
            total, memory, rest = np.mean(parts, axis=0)
            single = ", ".join(f"{all_:.2f} = {m:.2f} + {g:.2f}" for all_, m, g in parts)
            print(
                f"| {data} | {request} | {method} | {len(parts)} | {total:.3f} | {memory:.3f} | {rest:.3f} "
                f"| {single} |"
            )
    if left_out:
        print("\n" + "\n".join(f"- {line}" for line in left_out))


def as_they_ended(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that did not fail; where a method handed the original back, it ended as the original."""

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["dataset"], whole_of(row["request"]), row["seed"]

    original = {place(row): row for row in rows if row["method"] == "original"}
    out = []
    for row in rows:
        of = original.get(place(row))
        if (row["failure"] or "").startswith(NOTHING) and of:
            row = {**row, **{c: of.get(c) for c in KEPT}, "failure": None}
        if not row["failure"]:
            out.append(row)
    return out


def parted(row: dict[str, Any], of_retrains: float) -> tuple[float, float, float]:
    """The residual of a row, its part by memory and the rest; ``of_retrains``: their mean excess, nats."""
    room = row["ceiling"] - row["floor"]
    memory = (row["excess_jsd"] - of_retrains) / room
    return row["residual"], memory, row["residual"] - memory


if __name__ == "__main__":
    main()
