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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from replaced import (
    held_where_nobody_was_trained,
    line_search,
    once,
    one_projection,
    retain_side_of_the_trained,
)
from safetensors.torch import load_file, save_file

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


#: Variants that replace a function for the run, and those that change what comes out.
WITHIN: dict[str, Any] = {
    "cure, retain side measured on D_r": retain_side_of_the_trained,
    "cure, one projection over all weights": one_projection,
}
#: What of each batch of D_r asks for items that nobody was trained on, by variant.
OTHER_ITEMS = {
    f"{name}, half of D_r's prompts ask for other items": method
    for name, method in (("cure", "cure"), ("random groups", "random_modules"), ("its loop alone", "npo"))
}
WITHIN |= {name: partial(held_where_nobody_was_trained, 0.5) for name in OTHER_ITEMS}
AFTER = {"cure, its length searched on D_v and D_c": line_search}
#: Added to the method's seed: what a single run scatters by, on the same original and request.
OFFSETS = {"cure, a second seed of the method": 2000, "cure, a third seed of the method": 3000}


def offset(name: str) -> int:
    """What is added to the method's seed, of a variant or its twin."""
    return OFFSETS.get(name.replace("random groups", "cure"), 0)


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


def variants(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Method and configuration by name."""
    return of_adapter(recipe) if recipe.model.kind == "lora" else of_small_model(recipe)


def of_adapter(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Those of a LoRA adapter, each beside its twin: what is in force there, and on the small model."""
    cure, small = recipe.cure, load_recipe("demo").cure

    def changed(update: dict[str, Any] | None = None, **parts: Any) -> Any:
        return cure.model_copy(update={**parts, "update": cure.update.model_copy(update=update or {})})

    def looked_at(steps: int) -> dict[str, Any]:
        return {"max_steps": steps, "forget_every": steps, "check_every": steps // 3}

    back = {"rolled_back": small.rolled_back, "kept": small.kept}
    gap = {"open_gap": small.update.open_gap}
    both = {"project": small.project}
    steps = {"projection": small.update.projection}
    longer = {"retain_batch_size": 48}
    wider = {"saliency": None}
    configs = {
        "cure": cure,
        "the small model's settings": changed({**gap, **steps, **longer}, **back, **both),
        "the small model's settings, batches of 24": changed({**gap, **steps}, **back, **both),
        "weights go back": changed(gap, **back),
        "both gradients projected, and the steps": changed(steps, **both),
        "a tenth of the weights": changed(saliency=0.05),
        "two fifths of the weights": changed(saliency=0.2),
        "whole rows": changed(**wider),
        "30 steps": changed(looked_at(30)),
        "batches of 48": changed(longer),
        "push 3": changed({"push": 3.0}),
        "w 20, push 4": changed({"retain_weight": 20.0, "push": 4.0}),
        "labels of D_r weigh 1": changed({"retain_labels": 1.0}),
        "forget gradient anew every 10 steps": changed({"forget_every": 10}),
        "no average of the weights": changed({"average": 0.0}),
    }
    found = {}
    for name, config in configs.items():
        found[name if name == "cure" else f"cure, {name}"] = ("cure", config)
        found[f"random groups, {name}".removesuffix(", cure")] = ("random_modules", config)
    return {
        **found,
        **{name: ("cure", cure) for name in OFFSETS},
        **{name.replace("cure", "random groups"): ("random_modules", cure) for name in OFFSETS},
        **with_other_items(recipe),
        "its loop alone: no circuit, no groups": ("npo", cure.update),
        "PCGrad in its loop": ("pcgrad", recipe.config_of("pcgrad")),
        "CAGrad in its loop": ("cagrad", recipe.config_of("cagrad")),
        "npo": ("npo", recipe.npo),
    }


def with_other_items(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """``OTHER_ITEMS`` with their configurations."""
    return {
        name: (method, recipe.cure.update if method == "npo" else recipe.cure)
        for name, method in OTHER_ITEMS.items()
    }


def of_small_model(recipe: Recipe) -> dict[str, tuple[str, Any]]:
    """Those of the demo's small Llama, fully fine-tuned."""
    cure = recipe.cure

    def changed(**parts: Any) -> Any:
        return cure.model_copy(update=parts)

    def stepping(steps: int, **parts: Any) -> Any:
        looks = {"max_steps": steps, "forget_every": steps, "check_every": steps // 3}
        return changed(update=cure.update.model_copy(update={**looks, **parts}))

    def kept(share: float, others: float = 1.0) -> Any:
        return cure.kept.model_copy(update={"forget": share, "shared": share, "retain": others})

    def updated(**parts: Any) -> Any:
        return cure.update.model_copy(update=parts)

    steps = cure.update.max_steps
    # In force for seeds 61 to 65 of the benchmark, whose search took a push of 2; until 60 whole rows were.
    by_saliency = {
        "rolled_back": None,
        "saliency": 0.2,
        "kept": kept(0.65),
        "update": updated(lr=1.2e-3, push=2.0, open_gap=None),
    }
    by_row = {**by_saliency, "saliency": None, "tau": 0.7, "update": updated(lr=1.2e-3, open_gap=None)}
    fixed = {"kept": kept(0.35), "update": updated(open_gap=None)}  # of seeds 66 to 70
    a_fifth = {"saliency": 0.2}
    everywhere = {"tau": 1e-9, "scope": "all"}  # every unit is high in both: task-shared
    return {
        "cure": ("cure", cure),
        "cure, groups and weights drawn at random": ("random_modules", cure),
        "random groups and weights, pushed 8": ("random_modules", changed(update=updated(push=8.0))),
        "random groups and weights, pushed 30": ("random_modules", changed(update=updated(push=30.0))),
        "cure, .35 kept on every request": ("cure", changed(**fixed)),
        "random groups and weights, .35 kept on every request": ("random_modules", changed(**fixed)),
        "cure, a fifth of the weights may move": ("cure", changed(**a_fifth)),
        "random groups, a fifth of the weights may move": ("random_modules", changed(**a_fifth)),
        "cure, whole rows may move": ("cure", changed(saliency=None)),
        "random groups, whole rows may move": ("random_modules", changed(saliency=None)),
        "cure, what may move goes back (seeds 61 to 65)": ("cure", changed(**by_saliency)),
        "random groups, what may move goes back": ("random_modules", changed(**by_saliency)),
        "cure, three tenths of the rows, whole (until seed 60)": ("cure", changed(**by_row)),
        "random groups, three tenths of the rows, whole": ("random_modules", changed(**by_row)),
        "no groups (all task-shared)": ("cure", changed(**everywhere)),
        "cure, batches of 144": ("cure", changed(update=updated(retain_batch_size=144))),
        "random groups, batches of 144": ("random_modules", changed(update=updated(retain_batch_size=144))),
        "cure, nothing rolled back": ("cure", changed(kept=kept(1.0))),
        "random groups, nothing rolled back": ("random_modules", changed(kept=kept(1.0))),
        "cure, 30 steps": ("cure", stepping(30)),
        "cure, 90 steps": ("cure", stepping(90)),
        "cure, no labels of D_r": ("cure", stepping(steps, retain_labels=0.0)),
        "cure, overturned units task-shared": ("cure", changed(uncertain="shared")),
        "cure, the forget gradient alone projected": ("cure", changed(project=None)),
        "random groups, the forget gradient alone projected": ("random_modules", changed(project=None)),
        "cure, tau .3": ("cure", changed(tau=0.3)),
        "cure, tau .7": ("cure", changed(tau=0.7)),
        "cure, whole projections as units": ("cure", changed(granularity="projection")),
        "cure, heads and MLPs as units": ("cure", changed(granularity="head_mlp")),
        "cure, yes and no not balanced": ("cure", changed(update=updated(balance=False))),
        "cure, no average of the weights": ("cure", changed(update=updated(average=0.0))),
        "cure, SGD at a rate of .005": ("cure", changed(update=updated(optimizer="sgd", lr=5e-3))),
        "cure, steps projected instead of gradients": (
            "cure",
            changed(update=updated(projection="preconditioned")),
        ),
        "cure, forget gradient anew every 10 steps": ("cure", changed(update=updated(forget_every=10))),
        "cure, forget gradient anew every 5 steps": ("cure", changed(update=updated(forget_every=5))),
        "random groups, forget gradient anew every 5 steps": (
            "random_modules",
            changed(update=updated(forget_every=5)),
        ),
        "cure, forget gradient anew every 5 steps, nothing rolled back": (
            "cure",
            changed(kept=kept(1.0), update=updated(forget_every=5)),
        ),
        "cure, a tenth rolled back": ("cure", changed(rolled_back=0.1)),
        **{name: ("cure", cure) for name in (*WITHIN, *AFTER, *OFFSETS) if name not in OTHER_ITEMS},
        **with_other_items(recipe),
        "cure, label-free loss": ("cure", changed(update=updated(forget_loss="label_free"))),
        "cure, E2URec's teacher": ("cure", changed(update=updated(forget_loss="teacher"))),
        "cure, calibrated teacher": ("cure", changed(update=updated(forget_loss="calibrated"))),
        "cure, NPO loss": ("cure", changed(update=updated(forget_loss="npo"))),
        "its loop alone: no circuit, no groups, nothing back": ("npo", recipe.cure.update),
        "its loop alone, NPO loss": ("npo", updated(forget_loss="npo")),
        "PCGrad in its loop": ("pcgrad", recipe.config_of("pcgrad")),
        "PCGrad in its loop, push 1": ("pcgrad", recipe.config_of("pcgrad").model_copy(update={"push": 1.0})),
        "PCGrad in its loop, push 1, steps projected": (
            "pcgrad",
            recipe.config_of("pcgrad").model_copy(update={"push": 1.0, "projection": "preconditioned"}),
        ),
        "CAGrad in its loop": ("cagrad", recipe.config_of("cagrad")),
        "npo": ("npo", recipe.npo),
    }


def main() -> None:
    """Train, run every variant, append a row each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="demo", help="name or file, of a bench recipe too")
    parser.add_argument("--once", action="store_true", help="circuit and contributions on D_c once a seed")
    parser.add_argument("--data", default=None, help="name or path; default: the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--retrains", type=int, default=4)
    parser.add_argument("--work", type=Path, help="keep originals and retrains here, and use those there")
    parser.add_argument("--variants", nargs="+", help="only these; default: all")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--table", action="store_true", help="only print the means of the newest rows")
    parser.add_argument("--config", default="", help="of --table: first digits of another config_hash")
    options = parser.parse_args()
    if options.table:
        rows = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
        print(table([row for row in rows if row["config_hash"].startswith(options.config)]))
        return
    quiet()
    data, recipe = ratings(options.data, chosen_recipe(options.recipe))
    for seed in options.seeds:
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
                    "recipe": options.recipe,
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
    """Means over seeds by variant, of the last row's configuration; the residual is that of the means."""
    rows = [row for row in rows if row["config_hash"] == rows[-1]["config_hash"]]
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"seeds {seeds}\n",
        "| variant | residual | of single seeds | gap to retrain | test AUC above | seconds |",
        "|---" * 6 + "|",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = sorted((row for row in rows if row["variant"] == name), key=lambda row: int(row["seed"]))
        jsd, floor, ceiling, gap, auc, seconds = (
            np.mean([row[key] for row in mine])
            for key in (
                "jsd",
                "floor_jsd",
                "ceiling_jsd",
                "membership_gap",
                "auc_to_retrain",
                "t_total_s",
            )
        )
        single = ", ".join(f"{row['residual']:.2f}" for row in mine)
        residual = (jsd - floor) / (ceiling - floor)
        lines.append(f"| {name} | {residual:.3f} | {single} | {gap:+.3f} | {auc:+.4f} | {seconds:.1f} |")
    return "\n".join(lines)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL(p || q) of P(yes), nats."""
    return float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


if __name__ == "__main__":
    main()
