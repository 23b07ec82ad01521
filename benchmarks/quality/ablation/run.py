"""What each part of ``cure`` is worth: a recipe, one part changed at a time, development seeds.

One original and its retrains are trained for a seed and shared by all variants. Beside the distance to the
retrains each row has what a choice may be made by, since no retrain exists in production: the membership
gap to the base model on D_f and D_c, and the divergence from the original on D_v.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from replaced import once
from safetensors.torch import load_file, save_file
from variants import AFTER, WITHIN, offset, variants

from curerec.bench.recipe import bench_names, load_bench
from curerec.cli.bars import bars
from curerec.cli.inputs import quiet, ratings
from curerec.experiment import RETRAIN_SEEDS
from curerec.machine import machine, versions
from curerec.measure import Candidate, candidate, measure
from curerec.methods.retrain import retrain
from curerec.opened import Opened, open_recommender
from curerec.pipeline import task_for, train, unlearn
from curerec.progress import Clock
from curerec.recipe import Recipe
from curerec.recipes import load_recipe
from curerec.recommender.score import p_yes
from curerec.records import ForgetSplit
from curerec.splitting import drawn_request, granted

HERE = Path(__file__).parent


def chosen_recipe(name: str) -> Recipe:
    """A recipe by name or file, or that of a bench recipe's first data set and model."""
    path = Path(name)
    bench = name in bench_names()
    if path.is_file():
        bench = "datasets" in yaml.safe_load(path.read_text(encoding="utf-8"))
    if not bench:
        return load_recipe(name)
    found = load_bench(name)
    return found.setting(*found.places_of(found.requests[0])[0], ask=found.requests[0])


def named(recipe: str) -> str:
    """The recipe as a row names it: one beside this script by its place in the project."""
    path = Path(recipe)
    beside = path.is_file() and path.resolve().parent == HERE.resolve()
    return f"benchmarks/quality/ablation/{path.name}" if beside else recipe


def main() -> None:
    """Train, run every variant, append a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="demo", help="name or file, of a bench recipe too")
    parser.add_argument("--once", action="store_true", help="circuit and contributions on D_c once a seed")
    parser.add_argument("--data", default=None, help="name or path; default: the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 to 3; of --table: all")
    parser.add_argument("--retrains", type=int, default=4)
    parser.add_argument("--work", type=Path, help="keep originals and retrains here, and use those there")
    parser.add_argument("--variants", nargs="+", help="only these; default: all")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the means of the newest rows")
    parser.add_argument("--config", default="", help="of --table: first digits of another config_hash")
    options = parser.parse_args()
    if options.table:
        rows = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["config_hash"].startswith(options.config)]
        print(table([row for row in rows if not options.seeds or row["seed"] in options.seeds]))
        return
    quiet()
    data, recipe = ratings(options.data, chosen_recipe(options.recipe))
    for seed in options.seeds or range(4):
        place = nullcontext(options.work / str(seed)) if options.work else tempfile.TemporaryDirectory()
        shared = once() if options.once else nullcontext()
        with place as folder, bars() as reporter, shared, options.results.open("a") as file:
            work, chosen = Path(folder), recipe.seeded(seed)
            if not (work / "original").exists():
                work.mkdir(parents=True, exist_ok=True)
                train(data, chosen, work / "original", clock=Clock(reporter))
            opened = open_recommender(work / "original", data)
            request = drawn_request(data, chosen, opened.split)
            split = granted(data, chosen, opened.split, request)
            references = {
                f"retrain_{k}": retrained(opened, split, work, k, Clock(reporter))
                for k in range(1, options.retrains + 1)
            }
            original = Candidate(opened.recommender.model)
            base = Candidate(task_for(opened, split, seed=seed).base_model())
            for name, (method, config) in variants(chosen).items():
                if options.variants and name not in options.variants:
                    continue
                with WITHIN.get(name, nullcontext)():
                    own = seed + offset(name)
                    outcome, _ = unlearn(opened, request, method, config, seed=own, reporter=reporter)
                if name in AFTER:
                    outcome = AFTER[name](task_for(opened, split, seed=seed), outcome)
                new = candidate(outcome)
                found = measure(opened, split, {"original": original, "base": base, "new": new}, references)
                row = found.metrics["new"]
                before, after = (p_yes(one.logits["valid"]) for one in (original, new))
                line = {
                    "variant": name,
                    "recipe": named(options.recipe),
                    "once": options.once,
                    "seed": seed,
                    "gap_to_base": row["membership_auc"] - found.metrics["base"]["membership_auc"],
                    "kl_valid": divergence(before, after),
                    "auc_to_retrain": row["test_auc"]
                    - float(np.mean([found.metrics[r]["test_auc"] for r in references])),
                    "floor_jsd": found.floor_jsd,
                    "ceiling_jsd": found.ceiling_jsd,
                    **row,
                    "stop_reason": outcome.stop_reason,
                    "roles": outcome.groups and dict(Counter(outcome.groups.role.tolist())),
                    "config_hash": recipe.seeded(0).digest,
                    "versions": versions(),
                    "machine": machine(),
                }
                file.write(json.dumps(line, sort_keys=True, default=int) + "\n")
                file.flush()
                print(
                    f"{seed} {name:<52} residual {line['residual']:.3f}  gap {line['membership_gap']:+.3f}  "
                    f"AUC {line['auc_to_retrain']:+.4f}  chosen by: gap to base {line['gap_to_base']:+.3f}, "
                    f"KL on D_v {line['kl_valid']:.4f}  {line['t_total_s']:.1f} s",
                    flush=True,
                )


def retrained(opened: Opened, split: ForgetSplit, work: Path, number: int, clock: Clock) -> Candidate:
    """A retrain, from its file where it is there; what it cost is not known then."""
    file = work / f"retrain_{number}.safetensors"
    task = task_for(opened, split, seed=RETRAIN_SEEDS * number + opened.recipe.seed, clock=clock)
    if not file.exists():
        outcome = retrain(task)
        weights = {n: p.detach().clone() for n, p in outcome.model.named_parameters()}
        save_file(weights, file)
        return candidate(outcome)
    model = task.fresh()
    model.load_state_dict(load_file(file), strict=False)
    return Candidate(model)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds by variant, of the last row's configuration; the residual is that of the means.

    Single seeds are given with their residual and, in brackets, their gap to the retrains. Rows made with
    ``--once`` have no seconds: what a variant took depends on what ran before it.
    """
    rows = [row for row in rows if row["config_hash"] == rows[-1]["config_hash"]]
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"seeds {seeds}\n",
        "| variant | residual | of single seeds | gap to retrain | test AUC above | gap to base | KL on D_v "
        "| seconds |",
        "|---" * 8 + "|",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = sorted((row for row in rows if row["variant"] == name), key=lambda row: int(row["seed"]))
        jsd, floor, ceiling, gap, auc, to_base, kl, seconds = (
            np.mean([row[key] for row in mine])
            for key in (
                "jsd",
                "floor_jsd",
                "ceiling_jsd",
                "membership_gap",
                "auc_to_retrain",
                "gap_to_base",
                "kl_valid",
                "t_total_s",
            )
        )
        single = ", ".join(
            f"{row['seed']}: {row['residual']:.3f} ({row['membership_gap']:+.3f})" for row in mine
        )
        residual = (jsd - floor) / (ceiling - floor)
        took = "–" if any(row.get("once") for row in mine) else f"{seconds:.1f}"
        lines.append(
            f"| {name} | {residual:.3f} | {single} | {gap:+.3f} | {auc:+.4f} | {to_base:+.3f} | {kl:.4f} "
            f"| {took} |"
        )
    return "\n".join(lines)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL(p || q) of P(yes), nats."""
    return float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


if __name__ == "__main__":
    main()
