"""Rows of results: what was run, on what, medians and spread; a row that is there is not run again."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def options(about: str) -> argparse.ArgumentParser:
    """Options of every script."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="sizes of a second or two, to prove the script")
    parser.add_argument("--note", default="", help="for the row, e.g. what else the machine was doing")
    return parser


def machine() -> dict[str, Any]:
    """Processor, threads, device and versions."""
    import torch

    from curerec.machine import processor_name, processors, versions

    cuda = torch.cuda.is_available()
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "cores": processors(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": versions(),
    }


def alternating(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each, in turns: what else the machine does falls on all. A first turn is not counted.

    Returns:
        Name -> median, lowest and highest seconds.
    """
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            settle()
            if turn:
                seen[name].append(time.perf_counter() - start)
    return {n: {"median": statistics.median(s), "low": min(s), "high": max(s)} for n, s in seen.items()}


def settle() -> None:
    """Wait for what a GPU was given to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def done(results: Path, key: dict[str, Any]) -> bool:
    """Whether a row with this key is there, of this kind of device: a GPU's is another than a CPU's."""
    return found(results, key) is not None


def found(results: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The newest such row; None where there is none."""
    here = machine()["device"]
    rows = [row for row in rows_of(results) if row["key"] == key and row["machine"]["device"] == here]
    return rows[-1] if rows else None


def rows_of(results: Path) -> list[dict[str, Any]]:
    """All rows so far; none where there is no file yet."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line]


def write(results: Path, key: dict[str, Any], values: dict[str, Any], note: str = "") -> None:
    """Append a row and print it."""
    row = {"key": key, "values": values, "date": date.today().isoformat(), "note": note, "machine": machine()}
    print(json.dumps({"key": key, "values": values}))
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")
