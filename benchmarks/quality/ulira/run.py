"""U-LiRA at its 16 shadows: can who knows how a method unlearns tell what was deleted from the never seen?

    python benchmarks/quality/ulira/run.py --data ml-100k --work runs/ulira --seeds 106
    python benchmarks/quality/ulira/run.py --table

A seed has a split, a base model, a recommender and a request for 10 % of the users of its own. Shadows are
fine-tuned once a seed and unlearnt by every method. The original and a retrain that never saw the deleted
examples are attacked by each method's shadows, too: nothing can be found out of the retrain, and of the
original this attack, which looks for traces of unlearning, need not find anything. Rows go to
`results.jsonl`; a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from curerec.bench.lines import read_lines
from curerec.cli.inputs import quiet, ratings
from curerec.machine import machine, versions
from curerec.measure import Candidate, candidate, measure
from curerec.opened import open_recommender
from curerec.pipeline import train, unlearn
from curerec.progress import Clock
from curerec.recipes import load_recipe
from curerec.shadows import make_shadows
from curerec.splitting import drawn_request, granted

ROWS = Path(__file__).resolve().parent / "results.jsonl"
ATTACKS = ("ulira_auc", "ulira_tpr_at_fpr_01", "membership_auc")
METHODS = ("cure", "random_modules", "npo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="ml-100k", help="name or folder of MovieLens-100K")
    parser.add_argument("--work", type=Path, help="folder for models and shadows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[106])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--shadows", type=int, default=16)
    parser.add_argument("--table", action="store_true", help="print the rows that there are")
    asked = parser.parse_args()
    if not asked.table:
        if asked.work is None:
            parser.error("--work: where do models and shadows go?")
        quiet()
        for seed in asked.seeds:
            one_seed(asked.data, asked.work / str(seed), seed, asked.methods, asked.shadows)
    table()


def one_seed(name: str, work: Path, seed: int, methods: list[str], count: int) -> None:
    """Train what is not there, attack, and note what was found."""
    data, recipe = ratings(name, load_recipe("demo"))
    recipe = recipe.seeded(seed)
    if not (work / "original").exists():
        work.mkdir(parents=True, exist_ok=True)
        train(data, recipe, work / "original", clock=Clock())
    opened = open_recommender(work / "original", data)
    request = drawn_request(data, recipe, opened.split)
    split = granted(data, recipe, opened.split, request)
    done = {(row["seed"], row["by_shadows_of"]) for row in read_lines(ROWS)}
    retrained = None
    for method in methods:
        if (seed, method) in done:
            continue
        if retrained is None:
            retrained = Candidate(unlearn(opened, request, "retrain", None, seed=seed + 1000)[0].model)
        outcome, _ = unlearn(opened, request, method, opened.recipe.config_of(method), seed=seed)
        shadows = make_shadows(opened, split, method, work / "shadows", count=count)
        models = {"original": Candidate(opened.recommender.model), method: candidate(outcome)}
        everyone = (*models, "retrain")
        found = measure(
            opened,
            split,
            models,
            {"retrain": retrained},
            names=ATTACKS,
            shadows=dict.fromkeys(everyone, shadows),
        )
        for attacked in everyone:
            values = {key: found.values[attacked][key] for key in ATTACKS}
            note(seed, attacked, method, len(shadows.margins), {k: _plain(v) for k, v in values.items()})


def _plain(value: Any) -> dict[str, Any]:
    return {"value": value.value, "low": value.low, "high": value.high, "missing": value.missing}


def note(seed: int, attacked: str, method: str, count: int, values: dict[str, Any]) -> None:
    row = {
        "seed": seed,
        "attacked": attacked,
        "by_shadows_of": method,
        "shadows": count,
        **values,
        "machine": machine(),
        "versions": versions(),
    }
    with ROWS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def table() -> None:
    print("| seed | attacked | by shadows of | U-LiRA's AUC | its TPR at FPR .01 | loss attack's AUC |")
    print("|---|---|---|---|---|---|")
    for row in read_lines(ROWS):
        cells = " | ".join(_cell(row[key]) for key in ATTACKS)
        print(f"| {row['seed']} | {row['attacked']} | {row['by_shadows_of']} ({row['shadows']}) | {cells} |")


def _cell(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return str(value["missing"])
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


if __name__ == "__main__":
    main()
