"""Membership AUC of base, retrains and originals over all committed seeds of a data set.

`python benchmarks/quality/levels.py`. Of 10 % of the users, drawn at random, with at least 400 examples to
forget; a seed counts once, by the mean of its rows, whichever run they are of. By what retrains lie below the
base on the same seeds an aim is wrong for all requests alike; the rest of its error is each request's own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
REQUEST, LEAST = "users-0.1-random", 400


def told(what: str, values: Iterable[float]) -> None:
    """Print a mean over seeds."""
    of = np.array(list(values))
    if len(of) > 1:
        print(
            f"{what}: {len(of)} seeds, {of.mean():.4f} (standard error {of.std(ddof=1) / len(of) ** 0.5:.4f})"
        )


def main() -> None:
    """Print a line for each data set and model, and one for the difference."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for path in sorted(HERE.glob("**/rows.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            auc = row.get("membership_auc")
            if row.get("request") == REQUEST and auc is not None and row.get("n_forget", 0) >= LEAST:
                model = "retrain" if row["method"].startswith("retrain") else row["method"]
                models = found.setdefault(row["dataset"], defaultdict(lambda: defaultdict(list)))
                models[model][row["seed"]].append(auc)
    for dataset, models in sorted(found.items()):
        means = {
            m: {s: float(np.mean(v)) for s, v in models[m].items()} for m in ("base", "retrain", "original")
        }
        for model, seeds in means.items():
            told(f"{dataset} {model}", seeds.values())
        both = means["base"].keys() & means["retrain"].keys()
        told(f"{dataset} retrain less base", (means["retrain"][s] - means["base"][s] for s in sorted(both)))


if __name__ == "__main__":
    main()
