"""How near the membership AUC that an update aims for lies to that of retrains which never saw the deleted,
and how often such retrains lie within the error that the verdict allows.

    python benchmarks/quality/expected_auc/run.py --recipe RECIPE --models OUT --dataset ml-100k --data PLACE
    python benchmarks/quality/expected_auc/run.py --table

RECIPE and OUT are those of a `curerec bench` run: its originals and retrains are used (and trained where they
are not there). A seed's first request is looked at whole, and in ten parts, each a request by itself that
leaves all others to the model; the retrains are those of the whole, which saw none of them. Rows go to
`results.jsonl`; seeds that are there are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from curerec.bench.artefacts import opened_with, trained
from curerec.bench.lines import read_lines
from curerec.bench.recipe import BenchRecipe
from curerec.bench.sequence import deleted_rows, parts_of
from curerec.cli.inputs import quiet
from curerec.config import read_yaml
from curerec.data.fetch import load
from curerec.data.forget import without_rows
from curerec.machine import versions
from curerec.methods.expected import expected_membership, placements
from curerec.methods.stopping import Stopping, Watch
from curerec.methods.task import Task
from curerec.pipeline import Opened, task_for
from curerec.recommender.score import label_nll, score
from curerec.splitting import drawn_request, granted

ROWS = Path(__file__).resolve().parent / "results.jsonl"
LOOKED_AT = 300  # of D_f and of D_c, as updates do


def main() -> None:
    """Score what is not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--models", type=Path, help="folder of the run")
    parser.add_argument("--dataset", default="ml-100k", help="its name in the recipe")
    parser.add_argument("--data", help="name or folder, where the name does not find it")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the recipe's")
    parser.add_argument("--table", action="store_true", help="print the rows that there are")
    asked = parser.parse_args()
    if not asked.table:
        if asked.recipe is None or asked.models is None:
            parser.error("--recipe and --models: which run?")
        quiet()
        recipe = read_yaml(BenchRecipe, asked.recipe)
        for seed in asked.seeds or recipe.seeds:
            one_seed(recipe, asked.models, asked.dataset, asked.data or asked.dataset, seed)
    table()


def one_seed(bench: BenchRecipe, out: Path, dataset: str, place: str, seed: int) -> None:
    """Rows of a seed's first request, whole and in parts."""
    if any((row["dataset"], row["seed"]) == (dataset, seed) for row in read_lines(ROWS)):
        return
    data, ask = load(place), bench.requests[0]
    recipe = bench.setting(dataset, next(iter(bench.models)), ask=ask, seed=seed)
    opened = opened_with(trained(data, recipe, out), data, recipe, None)
    request = drawn_request(data, recipe, opened.split)
    split = granted(data, recipe, opened.split, request)
    retrains = [
        opened_with(trained(data, recipe, out, without=request, number=k), data, recipe, None)
        for k in range(bench.retrains)
    ]
    rows = []
    for part, asked in enumerate([request, *parts_of(request, 10, seed)]):
        mine = (
            split if part == 0 else without_rows(data, opened.split, deleted_rows(data, asked), source="part")
        )
        task = task_for(opened, mine, seed=100 * seed + part)
        aims = {
            target: Watch(task, Stopping(check_size=LOOKED_AT, target=target))
            for target in ("base", "expected")
        }
        aucs = [aims["base"].membership(one.recommender.model) for one in retrains]
        rows.append(
            {
                "dataset": dataset,
                "seed": seed,
                "part": part,
                "n_forget": len(mine.forget),
                "original": aims["base"].first["membership_auc"],
                **{target: watch.target for target, watch in aims.items()},
                "retrain": float(np.mean(aucs)),
                "retrain_sd": float(np.std(aucs, ddof=1)),
                "verdict": by_verdict(task, retrains),
                "versions": versions(),
            }
        )
    with ROWS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def by_verdict(task: Task, retrains: list[Opened]) -> dict[str, Any] | None:
    """What the verdict expects of a retrain, its standard error, and what each shows."""
    control = task.base_logits(task.control), task.original_logits(task.control)
    known = expected_membership(task, (task.forget_base, task.forget_original), control)
    if known is None:
        return None
    held = task.encode(task.control.take(known.reference))

    def shown(model: Any) -> float:
        forget, reference = (score(model, p, task.answers) for p in (task.forget_prompts, held))
        told = [label_nll(z, p.label) for z, p in ((forget, task.forget_prompts), (reference, held))]
        return float(placements(*told).mean())

    aucs = [shown(one.recommender.model) for one in retrains]
    return {"expected": known.auc, "error": known.error, "retrains": aucs}


def table() -> None:
    """Error of each aim against the mean of the retrains, by size of the request; and of the verdict's."""
    rows = list(read_lines(ROWS))
    print("| data | request | n | aim | mean error | root mean square |\n" + "|---" * 6 + "|")
    for dataset in sorted({row["dataset"] for row in rows}):
        for name, whole in (("10 % of the users", True), ("1 % of the users", False)):
            mine = [r for r in rows if r["dataset"] == dataset and (r["part"] == 0) == whole]
            truth = np.array([r["retrain"] for r in mine])
            aims = {
                "theta_o's own": np.array([r["original"] for r in mine]),
                "a half": np.full(len(mine), 0.5),
                "the base's": np.array([r["base"] for r in mine]),
                "expected": np.array([r["expected"] for r in mine]),
            }
            for aim, values in aims.items():
                error = values - truth
                rms = float(np.sqrt((error**2).mean()))
                print(f"| {dataset} | {name} | {len(mine)} | {aim} | {error.mean():+.3f} | {rms:.3f} |")
    heads = ("data", "request", "retrains", "standard error", "root mean square off", "beyond 1.96 errors")
    print(f"\n| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for dataset in sorted({row["dataset"] for row in rows}):
        for name, whole in (("10 % of the users", True), ("1 % of the users", False)):
            mine = [
                r["verdict"]
                for r in rows
                if r["dataset"] == dataset and (r["part"] == 0) == whole and r.get("verdict")
            ]
            if not mine:
                continue
            off = np.array([np.array(r["retrains"]) - r["expected"] for r in mine])
            error = np.array([r["error"] for r in mine])
            beyond = float((np.abs(off) > 1.96 * error[:, None]).mean())
            rms = float(np.sqrt((off**2).mean()))
            print(f"| {dataset} | {name} | {off.size} | {error.mean():.4f} | {rms:.4f} | {beyond:.1%} |")


if __name__ == "__main__":
    main()
