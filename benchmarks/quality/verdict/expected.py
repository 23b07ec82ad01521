"""How near the membership AUC that an update aims for lies to that of retrains which never saw the deleted,
and how often such retrains lie within the error that the verdict allows.

    python benchmarks/quality/verdict/expected.py --recipe RECIPE --models OUT --dataset ml-100k --data PLACE
    python benchmarks/quality/verdict/expected.py --table

RECIPE and OUT are those of a `curerec bench` run: its originals and retrains are used (and trained where they
are not there). A seed's first request of a kind is looked at whole, and in ten parts, each a request by
itself that leaves all others to the model; the retrains are those of the whole, which saw none of them. Rows
go to `expected.jsonl`; seeds that are there are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from referenced import Seed, run

from curerec.bench.rows import Row
from curerec.methods.expected import expected_membership, placements
from curerec.methods.stopping import Stopping, Watch
from curerec.methods.task import Task
from curerec.opened import Opened
from curerec.pipeline import task_for
from curerec.recommender.score import label_nll, score

ROWS = Path(__file__).resolve().parent / "expected.jsonl"
LOOKED_AT = 300  # of D_f and of D_c, as updates do


PARTS = 10


def rows_of(seed: Seed, parts: int) -> Iterator[Row]:
    """What is aimed for and what each retrain shows, of the whole request and of its parts."""
    for part, split in seed.requests(parts):
        task = task_for(seed.opened, split, seed=100 * seed.number + part)
        aims = {
            target: Watch(task, Stopping(check_size=LOOKED_AT, target=target))
            for target in ("base", "expected")
        }
        aucs = [aims["base"].membership(one.recommender.model) for one in seed.retrains]
        yield {
            "part": part,
            "n_forget": len(split.forget),
            "original": aims["base"].first["membership_auc"],
            **{target: watch.target for target, watch in aims.items()},
            "retrain": float(np.mean(aucs)),
            "retrain_sd": float(np.std(aucs, ddof=1)),
            "verdict": by_verdict(task, seed.retrains),
        }


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


def table(rows: list[Row]) -> None:
    """Error of each aim against the mean of the retrains, by size of the request; and of the verdict's."""
    print("| data | request | n | aim | mean error | root mean square |\n" + "|---" * 6 + "|")
    for dataset in sorted({row["dataset"] for row in rows}):
        for name, mine in _by_request(rows, dataset):
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
        for name, mine in _by_request(rows, dataset):
            told = [r["verdict"] for r in mine if r.get("verdict")]
            if not told:
                continue
            off = np.array([np.array(r["retrains"]) - r["expected"] for r in told])
            error = np.array([r["error"] for r in told])
            beyond = float((np.abs(off) > 1.96 * error[:, None]).mean())
            rms = float(np.sqrt((off**2).mean()))
            print(f"| {dataset} | {name} | {off.size} | {error.mean():.4f} | {rms:.4f} | {beyond:.1%} |")


def _by_request(rows: list[Row], dataset: str) -> Iterator[tuple[str, list[Row]]]:
    """Rows of the requests of each kind, whole and in parts; those that there are."""
    for kind, whole in product(("users", "items", "interactions"), (True, False)):
        asked = {"dataset": dataset, "kind": kind}
        mine = [r for r in rows if asked.items() <= r.items() and (r["part"] == 0) == whole]
        if mine:
            yield f"{10 if whole else 1} % of the {kind}", mine


if __name__ == "__main__":
    table(run(__doc__ or "", ROWS, PARTS, rows_of))
