"""The committed rows as Markdown: ``python benchmarks/speed/table.py > benchmarks/speed/table.md``.

Repeats of a request become one line, of medians and what they spread over; ratios are of medians of one
sitting (a day and a processor), the same model, settings and share of the users. Of other questions every row
is a line, the newest of a key alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
Row = dict[str, Any]

QUESTIONS = {
    "training": "training tokens/s against transformers' Trainer + PEFT",
    "matrix": "share of the matrix rate",
    "request": "a request by stage, against a retrain and E2URec",
    "growth": "growth with one size at a time",
    "scoring": "scoring against a plain loop",
    "command": "the command",
}
LARGEST = 4  # stages that a line names


def spread(values: Iterable[float], unit: str = " s") -> str:
    """Median and range."""
    v = sorted(values)
    range_ = f" ({v[0]:.3g} to {v[-1]:.3g})" if len(v) > 1 else ""
    return f"{median(v):.3g}{unit}{range_}"


def table(head: list[str], lines: Iterable[list[str]]) -> Iterator[str]:
    """A Markdown table, line by line."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for line in lines:
        yield f"| {' | '.join(line)} |"


def where(row: Row) -> str:
    """Processor or GPU, threads, torch; what else the machine did, where that is known."""
    machine = row["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    torch = machine["versions"].get("torch", "?").partition("+")[0]
    return f"{device}, {machine['threads']} threads, torch {torch}" + (
        f"; {row['note']}" if row["note"] else ""
    )


def seen_of(row: Row) -> str:
    """What a row saw, in words."""
    seen = []
    for name, value in row["values"].items():
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
    return "; ".join(seen)


def newest(rows: list[Row]) -> list[Row]:
    """The last row of each key and kind of device, in order of first appearance."""
    return list({(json.dumps(r["key"], sort_keys=True), r["machine"]["device"]): r for r in rows}.values())


def others(rows: list[Row]) -> Iterator[str]:
    """One table of a question's rows."""

    def line(row: Row) -> list[str]:
        what = ", ".join(f"{k} {v}" for k, v in row["key"].items() if k != "question" and v is not False)
        return [what, seen_of(row), row["date"], where(row)]

    yield from table(["of", "seen", "date", "where"], map(line, newest(rows)))


def requests(rows: list[Row]) -> Iterator[str]:
    """Requests, a line for all repeats of one sitting."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[(*_asked(row), row["key"]["method"], row["key"].get("kept", False))].append(row)
    # Sizes first, since ratios are read within one.
    ordered = sorted(groups, key=lambda k: (k[2], k[0], k[5], *map(str, k)))

    def line(key: tuple[Any, ...]) -> list[str]:
        mine = groups[key]
        *asked, method, kept = key
        date, processor, size, _, settings, share = asked
        t = [r["values"]["t_total_s"] for r in mine]

        def of(other: str) -> str:
            beside = groups.get((*asked, other, False))
            if not beside or method in (other, "retrain"):
                return ""
            ratio = median(r["values"]["t_total_s"] for r in beside) / median(t)
            return f"1/{ratio:.3g}" if ratio >= 1 else f"{1 / ratio:.2f} times"

        stages: dict[str, list[float]] = defaultdict(list)
        for r in mine:
            for name, seconds in r["values"].get("stages", {}).items():
                stages[name].append(seconds)
        largest = sorted(((median(v), n) for n, v in stages.items()), reverse=True)[:LARGEST]
        told = [r["values"]["planned_over_real"] for r in mine if r["values"].get("planned_over_real")]
        notes = sorted({r["note"] for r in mine if r["note"]})
        return [
            f"{size or '?'}",
            f"{100 * share:g} % ({mine[0]['values']['n_forget']})",
            settings,
            method + (", prepared" if kept else ""),
            str(len(mine)),
            spread(t),
            of("retrain"),
            of("e2urec"),
            ", ".join(f"{n} {s:.2g}" for s, n in largest),
            spread(told, "×") if told else "",
            date,
            processor + (f"; {', '.join(notes)}" if notes else ""),
        ]

    head = ["prompts", "of users (prompts)", "settings", "method", "n", "t_total", "of a retrain"]
    head += ["of E2URec", "largest stages, s", "planned / real", "date", "where"]
    yield from table(head, map(line, ordered))
    told = [r for row in rows if (r := row["values"].get("planned_over_real"))]
    off = sorted(round(r, 2) for r in told if abs(r - 1) > 0.3)
    yield f"\nPlans: {len(told)}, off by more than 30 %: {len(off)} ({', '.join(map(str, off))})"


def _asked(row: Row) -> tuple[Any, ...]:
    """Sitting, size, recommender, settings and share of a request's row."""
    key = row["key"]
    settings = [str(key["recipe"])] if key.get("recipe") else []
    settings += [f"all steps from {key['all_steps_from']}"] if key.get("all_steps_from") else []
    device = row["machine"]["processor"] if row["machine"]["device"] == "cpu" else row["machine"]["device"]
    said = ", ".join(settings) or "stored"
    return row["date"], device, key.get("n_train", 0), key.get("model", ""), said, key["share"]


def main() -> None:
    """Print them."""
    rows = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines() if line]
    by_question: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_question[row["key"]["question"]].append(row)
    print("# Speed: the rows\n\nWritten by `table.py`; docs/speed.md has what they say.")
    for name in [*QUESTIONS, *sorted(by_question.keys() - QUESTIONS.keys())]:
        if mine := by_question.get(name):
            title = f"{name}: {QUESTIONS[name]}" if name in QUESTIONS else name
            print(f"\n## {title[0].upper()}{title[1:]}\n")
            print("\n".join(requests(mine) if name == "request" else others(mine)))


if __name__ == "__main__":
    main()
