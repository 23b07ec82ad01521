"""The committed rows as Markdown tables: ``python benchmarks/speed/table.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def lines(row: dict[str, Any]) -> list[str]:
    """Cells of a row: what was asked, what was seen."""
    key, values = row["key"], row["values"]
    what = ", ".join(f"{k} {v}" for k, v in key.items() if k != "question")
    seen = []
    for name, value in values.items():
        if name == "seconds":
            for peer, s in value.items():
                s = s if isinstance(s, dict) else {"median": s, "low": s, "high": s}
                seen.append(f"{peer} {s['median']:.3g} s ({s['low']:.3g} to {s['high']:.3g})")
        elif isinstance(value, dict) and not any(isinstance(v, dict) for v in value.values()):
            seen.append(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in value.items()))
        elif name.endswith("_bytes"):
            seen.append(f"{name.removesuffix('_bytes')} {value / 2**20:.0f} MiB")
        elif isinstance(value, int | float):
            seen.append(f"{name} {value:.4g}")
    return [row["key"]["question"], what, "; ".join(seen), row["date"], row["machine"]["device"]]


def main() -> None:
    """Print them."""
    rows = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines() if line]
    print("| question | of | seen | date | device |\n|---|---|---|---|---|")
    for row in sorted(rows, key=lambda r: r["key"]["question"]):
        print("| " + " | ".join(lines(row)) + " |")
    told = [r for row in rows if (r := row["values"].get("planned_over_real"))]
    off = sorted(round(r, 2) for r in told if abs(r - 1) > 0.3)
    print(f"\nPlans: {len(told)}, off by more than 30 %: {len(off)} ({', '.join(map(str, off))})")


if __name__ == "__main__":
    main()
