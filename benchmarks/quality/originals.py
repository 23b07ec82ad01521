"""How much of a residual is a method's own error, and how much the chance of one training.

`python benchmarks/quality/originals.py OUT RECIPE MODEL --rows FILE --data NAME=PLACE...`: OUT is the folder
that `curerec bench --recipe RECIPE` wrote, with its models and answers. For each data set and seed on which
the recipe has `cure` for a tenth of the users the recommender is trained twice more, in other orders, and
each method of the recipe is run on these, too, with other seeds of the method. The answers of the three
models on D_f and on test data, beside those of the retrains, give the error in the mean over trainings
(:func:`curerec.evaluation.systematic.systematic_error`), as a share of the originals' own on D_f; and the
distance of seed averages (``jsd_mean``, docs/metrics.md). A row a data set, seed and method is appended to
FILE; those that are there are not made again, nor are trainings. `--table FILE...` prints the rows: means
over seeds with t intervals, and in pairs how much farther than `cure` the others lie, with the p of the t
test after Holm's correction. Retrains are opened when all updates have been made: nothing is chosen by them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aim import auc, pairs, parser
from safetensors.numpy import load_file as load_answers
from safetensors.torch import load_file, save_file
from scipy import stats

from curerec.bench.plan import Job
from curerec.bench.rows import newest
from curerec.bench.significance import holm
from curerec.bench.work import Workshop
from curerec.evaluation.auc import auc as ranking
from curerec.evaluation.residual import Reference
from curerec.evaluation.systematic import systematic_error
from curerec.machine import machine, versions
from curerec.methods import METHODS, Task
from curerec.opened import Opened
from curerec.pipeline import task_for, unlearn
from curerec.recommender.score import label_nll, p_yes, score
from curerec.recommender.tune import tune

ORIGINALS = 3
ORDERS = 5000  # seeds of further trainings start here, beyond those of the retrains
SEEDS = 1000  # so far apart are the seeds of a method on one recommender and on the next
PARTS = ("forget", "test")
Answers = dict[str, np.ndarray]  # P(yes) by part


def main() -> None:
    """Make what lacks, or print the table."""
    options = parser(__doc__)
    for action in options._actions:
        if not action.option_strings and action.dest != "help":
            action.nargs = "?"  # of --table no folder is asked
    options.add_argument("--rows", type=Path)
    options.add_argument("--only", nargs="+", help="these data sets alone")
    options.add_argument("--threads", type=int)
    options.add_argument("--table", type=Path, nargs="+", metavar="FILE")
    asked = options.parse_args()
    if asked.table:
        print(table([json.loads(line) for file in asked.table for line in file.read_text().splitlines()]))
        return
    if asked.threads:
        torch.set_num_threads(asked.threads)
    for shop, cell in pairs(asked):
        if not asked.only or cell.dataset in asked.only:
            for row in rows_of(shop, cell, asked.out, known(asked.rows)):
                with asked.rows.open("a") as file:
                    file.write(json.dumps(row, sort_keys=True) + "\n")
                print(
                    f"{row['dataset']} {row['seed']} {row['method']}: {row['systematic_forget']:.3f}",
                    flush=True,
                )


def known(file: Path) -> set[tuple[str, int, str]]:
    """Data set, seed and method of the rows that are there."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {(row["dataset"], row["seed"], row["method"]) for row in map(json.loads, lines)}


def rows_of(
    shop: Workshop, cell: Job, out: Path, done: set[tuple[str, int, str]]
) -> Iterator[dict[str, Any]]:
    """The rows of a data set and a seed that are not done."""
    assert cell.ask is not None
    wanted = [m for m in cell.ask.chosen if m in METHODS and (cell.dataset, cell.seed, m) not in done]
    if not wanted:
        return
    opened, (request, split) = shop._opened(cell), shop._asked(cell)
    task = task_for(opened, split, seed=cell.seed)
    parts = {part: task.encode(getattr(split, part)) for part in (*PARTS, "control")}

    def answers(model: Any) -> Answers:
        return {part: p_yes(score(model, prompts, task.answers)) for part, prompts in parts.items()}

    others = [trained(opened, task, out / "originals", cell, k) for k in range(1, ORIGINALS)]
    originals = [answers(one.recommender.model) for one in (opened, *others)]
    made = {}
    for method in wanted:
        made[method] = [stored(shop, cell, method)]
        for k, one in enumerate(others, 1):
            config = opened.recipe.config_of(method)
            seed = cell.seed + SEEDS * k
            made[method].append(answers(unlearn(one, request, method, config, seed=seed)[0].model))
    retrains = [
        {part: p_yes(one.logits[part]) for part in parts} for one in shop._yardstick(cell)[1].values()
    ]
    label = {part: getattr(split, part).label for part in parts}
    for method, new in made.items():
        yield {
            **{"dataset": cell.dataset, "seed": cell.seed, "request": cell.request, "method": method},
            **errors(new, originals, retrains),
            **singles(new, originals, retrains, label),
            "versions": versions(),
            "machine": machine(),
        }


def errors(new: list[Answers], originals: list[Answers], retrains: list[Answers]) -> dict[str, float]:
    """The error in the mean over trainings, and that of seed averages, as shares of the originals'."""
    found: dict[str, float] = {}
    for part in PARTS:
        mine, before, without = (stacked(side, part) for side in (new, originals, retrains))
        room = systematic_error(before, without)
        # On test data an original may lie where retrains do, so the room of D_f is the scale of both.
        found[f"original_{part}"] = room
        found[f"systematic_{part}"] = systematic_error(mine, without) / found["original_forget"]
        scale = Reference(without, before.mean(0))
        found[f"jsd_mean_{part}"] = scale.jsd_mean(mine)
        found[f"original_jsd_mean_{part}"] = scale.jsd_mean(before)
    return found


def singles(
    new: list[Answers], originals: list[Answers], retrains: list[Answers], label: dict[str, np.ndarray]
) -> dict[str, list[float]]:
    """Residual, membership gap and test AUC of each model, against the same retrains."""

    def membership(one: Answers) -> float:
        logits = {part: np.stack([np.log1p(-p), np.log(p)], 1) for part, p in one.items()}
        return auc(*(label_nll(logits[part], label[part]) for part in ("forget", "control")))

    def on_test(one: Answers) -> float:
        said, positive = one["test"], label["test"] == 1
        return float(ranking(said[positive], said[~positive]))

    gap, quality = (float(np.mean([f(one) for one in retrains])) for f in (membership, on_test))
    scales = [Reference(stacked(retrains, "forget"), one["forget"]) for one in originals]
    return {
        "residual": [s.residual(s.distance(one["forget"])) for s, one in zip(scales, new, strict=True)],
        "membership_gap": [membership(one) - gap for one in new],
        "test_auc_above": [on_test(one) - quality for one in new],
    }


def stacked(side: list[Answers], part: str) -> np.ndarray:
    """[models, n]."""
    return np.stack([one[part] for one in side]).astype(float)


def trained(opened: Opened, task: Task, folder: Path, cell: Job, number: int) -> Opened:
    """The same recommender trained in another order, from its file where it is there."""
    file = folder / f"{cell.dataset}-{cell.seed}-{number}.safetensors"
    model = task.fresh()
    if file.exists():
        model.load_state_dict(load_file(file), strict=False)
    else:
        prompts = task.encode(opened.split.train)
        seed = ORDERS * number + cell.seed
        tune(model, prompts, task.answers, task.tuning, seed=seed, runtime=task.runtime)
        folder.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(".half")
        save_file({n: p.detach().clone() for n, p in model.named_parameters()}, half)
        half.rename(file)
    one = replace(opened.recommender, model=model.eval())
    return replace(opened, recommender=one)  # what training stored is of another model, and is not asked


def stored(shop: Workshop, cell: Job, method: str) -> Answers:
    """What the method's model of the benchmark answered."""
    lines = (shop.out / "rows.jsonl").read_text().splitlines()
    here = (cell.dataset, cell.model, cell.seed, cell.request, method)
    keys = ("dataset", "model", "seed", "request", "method")
    rows = [r for r in newest([json.loads(line) for line in lines]) if tuple(r[k] for k in keys) == here]
    if not rows or not rows[-1].get("predictions"):
        raise SystemExit(f"{shop.out}: no answers of {method} on {cell.dataset}, seed {cell.seed}")
    found = load_answers(shop.out / "predictions" / rows[-1]["predictions"])
    return {part: found[part].astype(float) for part in (*PARTS, "control")}


def table(rows: list[dict[str, Any]]) -> str:
    """Means by data set, and in pairs over all how much farther than `cure`."""
    places = sorted({(r["dataset"], r["seed"]) for r in rows})
    by = {(r["dataset"], r["seed"], r["method"]): r for r in rows}
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    columns = {
        "error on D_f": lambda r: r["systematic_forget"],
        "on test data": lambda r: r["systematic_test"],
        "residual of single models": lambda r: float(np.mean(r["residual"])),
        "gap": lambda r: float(np.mean(r["membership_gap"])),
        "AUC above": lambda r: float(np.mean(r["test_auc_above"])),
    }
    head = ["data", "method", "seeds", *columns]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for data in dict.fromkeys(d for d, _ in places):
        for method in methods:
            mine = [by[d, s, method] for d, s in places if d == data and (d, s, method) in by]
            cells = [with_interval([f(r) for r in mine]) for f in columns.values()]
            lines.append(f"| {data} | {method} | {len(mine)} | " + " | ".join(cells) + " |")
    for name in ("error on D_f", "on test data", "residual of single models"):
        value = columns[name]
        lines += [
            "",
            f"{name}: farther than cure, in pairs",
            "| method | pairs | farther | nearer is cure on | p, Holm |",
        ]
        lines.append("|---" * 5 + "|")
        found = {}
        for method in methods:
            both = [(d, s) for d, s in places if (d, s, method) in by and (d, s, "cure") in by]
            if method != "cure" and len(both) > 1:
                found[method] = np.array([value(by[d, s, method]) - value(by[d, s, "cure"]) for d, s in both])
        p = holm([float(stats.ttest_1samp(each, 0).pvalue) for each in found.values()])
        for (method, each), one in zip(found.items(), p, strict=True):
            n, nearer = len(each), int((each > 0).sum())
            lines.append(f"| {method} | {n} | {with_range(each)} | {nearer} of {n} | {one:.4f} |")
    return "\n".join(lines)


def with_interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % t interval."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {half(np.array(values)):.3f}"


def with_range(values: np.ndarray) -> str:
    """Mean and 95 % t interval."""
    mean, wide = float(values.mean()), half(values)
    return f"{mean:.3f} ({mean - wide:.3f} to {mean + wide:.3f})"


def half(values: np.ndarray) -> float:
    """Half the width of the 95 % t interval of a mean."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    main()
