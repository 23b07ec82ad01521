"""How far the membership AUC that an update aims for lies from what retrains have, by size of the looks.

`python benchmarks/quality/aim.py OUT RECIPE MODEL --data NAME=PLACE...`: OUT is the folder that
`curerec bench --recipe RECIPE` wrote, with its models. No update is made. For each data set and seed of MODEL
whose recipe has `cure` on a tenth of the users it prints a JSON line: of looks at 300 and 1,000 examples the
aim (``methods/expected.py``), the AUC of the base and of theta_o, and the mean AUC of the retrains, all on
the same examples; and the retrains' on all. Then where an aim can be wrong: what theta_o and retrains say of
D_c's ratings by the deleted people against those by others (a retrain has seen nothing of these people,
theta_o their other ratings), and theta_o of D_r, of all of it and of the pool that the memory is learned of.
Retrains are opened here: aims are judged by it, never set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from curerec.bench.plan import Job, plan
from curerec.bench.recipe import load_bench
from curerec.bench.work import Workshop
from curerec.methods.expected import clusters, pool
from curerec.methods.stopping import Watch
from curerec.pipeline import task_for
from curerec.recommender.score import label_nll

SIZES = (300, 1000)


def auc(forget: np.ndarray, control: np.ndarray) -> float:
    """Of the loss attack, from losses."""
    member = np.r_[np.ones(len(forget)), np.zeros(len(control))]
    return float(roc_auc_score(member, -np.concatenate([forget, control])))


def row_of(shop: Workshop, cell: Job) -> dict[str, Any]:
    """One pair of data set and seed."""
    opened, (_, split), (_, references, _) = shop._opened(cell), shop._asked(cell), shop._yardstick(cell)
    task = task_for(opened, split, seed=cell.seed)
    losses = [
        tuple(label_nll(one.logits[part], getattr(split, part).label) for part in ("forget", "control"))
        for one in references.values()
    ]
    row: dict[str, Any] = {"dataset": cell.dataset, "seed": cell.seed}
    row["retrains_on_all"] = [auc(*pair) for pair in losses]
    for size in SIZES:
        looks = opened.recipe.cure.update.model_copy(update={"check_size": size})
        expected, base = (Watch(task, looks.model_copy(update={"target": t})) for t in ("expected", "base"))
        control = task.sample_index(len(task.control), size, 52)
        row[str(size)] = {
            "aim": expected.target,
            "base": base.target,
            "original": expected.first["membership_auc"],
            "retrains": float(np.mean([auc(f[expected.index], c[control]) for f, c in losses])),
        }
    deleted = np.isin(*(task.data.user_code[part.target] for part in (split.control, split.forget)))
    original = label_nll(task.original_logits(split.control), split.control.label)
    said = {"original": [original], "retrains": [control for _, control in losses]}
    row["control_of_deleted"] = {
        name: float(np.mean([auc(one[deleted], one[~deleted]) for one in each]))
        for name, each in said.items()
    }
    seen = label_nll(task.original_logits(task.retain), task.retain.label)
    asked = pool(clusters(task)[task.retain.target])
    row["original_on_retain"] = {"all": auc(seen, original), "pool": auc(seen[asked], original)}
    return row


def pairs(options: argparse.Namespace) -> Iterator[tuple[Workshop, Job]]:
    """Each data set and seed on which the model's recipe has `cure` for a tenth of the users."""
    recipe = load_bench(options.recipe)
    shop = Workshop(recipe, options.out, dict(pair.split("=", 1) for pair in options.data))
    for cell in plan(recipe):
        whole = cell.kind == "cell" and (cell.method, cell.model) == ("cure", options.model)
        if whole and cell.request == "users-0.1-random" and cell.ask and cell.ask.parts == 1:
            yield shop, cell


def parser(about: str | None) -> argparse.ArgumentParser:
    """Of what names a benchmark's folder."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument("out", type=Path)
    found.add_argument("recipe")
    found.add_argument("model")
    found.add_argument("--data", nargs="+", default=[], metavar="NAME=PLACE")
    return found


def main() -> None:
    """Print a line for each pair."""
    for shop, cell in pairs(parser(__doc__).parse_args()):
        print(json.dumps(row_of(shop, cell)), flush=True)


if __name__ == "__main__":
    main()
