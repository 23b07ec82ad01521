"""Membership AUC of base, retrains and originals over all committed seeds of a data set.

`python benchmarks/quality/levels.py`. Of 10 % of the users, drawn at random, with at least 400 examples to
forget; a seed counts once, by the mean of its rows, whichever run they are of. By what retrains lie below the
base an aim is wrong for all requests alike; the rest of an aim's error is each request's own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
REQUEST, LEAST = "users-0.1-random", 400


def main() -> None:
    """Print a line for each data set and model: seeds, mean, standard error."""
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(HERE.glob("**/rows.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            auc = row.get("membership_auc")
            if row.get("request") == REQUEST and auc is not None and row.get("n_forget", 0) >= LEAST:
                model = "retrain" if row["method"].startswith("retrain") else row["method"]
                found[row["dataset"], model][row["seed"]].append(auc)
    for (dataset, model), seeds in sorted(found.items()):
        if model in ("base", "retrain", "original") and len(seeds) > 1:
            means = np.array([np.mean(values) for values in seeds.values()])
            error = means.std(ddof=1) / np.sqrt(len(means))
            print(f"{dataset} {model}: {len(means)} seeds, {means.mean():.4f} (standard error {error:.4f})")


if __name__ == "__main__":
    main()
