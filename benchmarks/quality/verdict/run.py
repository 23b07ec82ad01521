"""How often the verdict verifies what it should: retrains, which never saw the deleted data, and fakes.

    python benchmarks/quality/verdict/run.py --recipe RECIPE --models OUT --dataset ml-100k --data PLACE
    python benchmarks/quality/verdict/run.py --table

RECIPE and OUT are those of a `curerec bench` run: its originals and retrains are used (and trained where they
are not there). A seed's first request is judged whole, and in some of ten parts, each a request by itself;
the retrains are those of the whole, which saw none of them. Fakes are made of the original's answers, the way
a model or a filter in front of it would answer. Rows go to `results.jsonl`; seeds already there are left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from curerec.bench.artefacts import opened_with, trained
from curerec.bench.lines import read_lines
from curerec.bench.recipe import BenchRecipe
from curerec.bench.sequence import deleted_rows, parts_of
from curerec.cli.inputs import quiet
from curerec.config import read_yaml
from curerec.data.fetch import load
from curerec.data.forget import without_rows
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.utility import nll
from curerec.machine import versions
from curerec.measure import ground_of, judge
from curerec.pipeline import base_model
from curerec.splitting import drawn_request, granted

ROWS = Path(__file__).resolve().parent / "results.jsonl"
SETS = ("forget", "control", "valid")
Answers = dict[str, np.ndarray]  # margins of P(yes) by set, [n]


def main() -> None:
    """Judge what is not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--models", type=Path, help="folder of the run")
    parser.add_argument("--dataset", default="ml-100k", help="its name in the recipe")
    parser.add_argument("--data", help="name or folder, where the name does not find it")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the recipe's")
    parser.add_argument("--parts", type=int, default=3, help="of ten, judged as requests by themselves")
    parser.add_argument("--table", action="store_true", help="print the rows that there are")
    asked = parser.parse_args()
    if not asked.table:
        if asked.recipe is None or asked.models is None:
            parser.error("--recipe and --models: which run?")
        quiet()
        recipe = read_yaml(BenchRecipe, asked.recipe)
        for seed in asked.seeds or recipe.seeds:
            one_seed(recipe, asked.models, asked.dataset, asked.data or asked.dataset, seed, asked.parts)
    table()


def one_seed(bench: BenchRecipe, out: Path, dataset: str, place: str, seed: int, parts: int) -> None:
    """Rows of a seed's first request on a data set, whole and in parts."""
    if any((row["dataset"], row["seed"]) == (dataset, seed) for row in read_lines(ROWS)):
        return
    data = load(place)
    ask = next(a for a in bench.requests if a.datasets is None or dataset in a.datasets)
    recipe = bench.setting(dataset, next(iter(bench.models)), ask=ask, seed=seed)
    opened = opened_with(trained(data, recipe, out), data, recipe, None)
    request = drawn_request(data, recipe, opened.split)
    split = granted(data, recipe, opened.split, request)
    retrains = [
        opened_with(trained(data, recipe, out, without=request, number=k), data, recipe, None)
        for k in range(bench.retrains)
    ]
    plain = base_model(opened, seed=seed)
    rows = []
    for part, asked in enumerate([request, *parts_of(request, 10, seed)[:parts]]):
        deleted = None if part == 0 else deleted_rows(data, asked)
        mine = split if deleted is None else without_rows(data, opened.split, deleted, source="part")
        ground, base = ground_of(opened, mine, seed=seed), Candidate(plain)
        original = Candidate(opened.recommender.model)
        label = {name: ground.part(name).label for name in SETS}
        was = {name: _margin(ground.logits(original, name)) for name in SETS}
        models = {f"retrain {k + 1}": Candidate(r.recommender.model) for k, r in enumerate(retrains)}
        rng = np.random.default_rng([seed, part])
        models |= {name: _answering(fake(was, label, rng)) for name, fake in FAKES.items()}
        for name, one in models.items():
            found = judge(opened, mine, original, one, base, ground=ground)
            rows.append(
                {
                    "dataset": dataset,
                    "seed": seed,
                    "part": part,
                    "n_forget": len(mine.forget),
                    "model": name,
                    "verified": found["verified"],
                    "checks": [
                        {k: c[k] for k in ("name", "passed", "value", "limit")} for c in found["checks"]
                    ],
                    "versions": versions(),
                }
            )
    with ROWS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def _margin(logits: np.ndarray) -> np.ndarray:
    return logits[:, 1].astype(np.float64) - logits[:, 0]


def _answering(margins: Answers) -> Candidate:
    """A model that gives these answers."""
    one = Candidate(None)
    one.logits = {name: np.stack([np.zeros_like(z), z], 1) for name, z in margins.items()}
    one.memory = dict(one.logits)
    return one


# What each fake answers, from the original's margins and the labels.


def _everywhere(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]):
    return lambda was, label, rng: {name: change(z, rng) for name, z in was.items()}


def _blocked(constant: Callable[[Answers, Answers], float], share: float = 1.0):
    """A filter at the prompt: a constant about (a share of) the deleted examples, the original else."""

    def fake(was: Answers, label: Answers, rng: np.random.Generator) -> Answers:
        hit = rng.random(len(was["forget"])) < share
        return {**was, "forget": np.where(hit, constant(was, label), was["forget"])}

    return fake


def base_rate(was: Answers, label: Answers) -> float:
    """Log odds of a like among unseen data."""
    share = label["control"].mean()
    return float(np.log(share / (1 - share)))


def untold(was: Answers, label: Answers) -> float:
    """The constant that brings the membership AUC nearest to a half."""
    control = -nll(was["control"], label["control"])
    member = np.r_[np.ones(len(label["forget"])), np.zeros(len(control))]

    def auc(c: float) -> float:
        forget = -nll(np.full(len(label["forget"]), c), label["forget"])
        return float(roc_auc_score(member, np.r_[forget, control]))

    return min(np.linspace(-3, 3, 61).tolist(), key=lambda c: abs(auc(c) - 0.5))


FAKES: dict[str, Callable[[Answers, Answers, np.random.Generator], Answers]] = {
    "does nothing": _everywhere(lambda z, rng: z),
    "temperature 2": _everywhere(lambda z, rng: z / 2),
    "temperature .5": _everywhere(lambda z, rng: z * 2),
    "destroyed: answers at random": _everywhere(lambda z, rng: rng.permutation(z)),
    "destroyed: noise as large as the answers": _everywhere(
        lambda z, rng: z + rng.normal(0, z.std(), len(z))
    ),
    "blocked: base rate": _blocked(base_rate),
    "blocked: always no": _blocked(lambda was, label: -9.0),
    "blocked: constant tuned to the attack": _blocked(untold),
    "blocked: half of the deleted": _blocked(base_rate, 0.5),
    "blocked: another person's answers": lambda was, label, rng: {
        **was,
        "forget": rng.choice(was["control"], len(was["forget"])),
    },
}


def table() -> None:
    """Shares verified, refused and not judged, and what refused."""
    rows = list(read_lines(ROWS))
    notes = []
    heads = ("data", "request", "model", "n", "verified", "refused", "not judged", "refused by")
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for dataset in sorted({row["dataset"] for row in rows}):
        for request, whole in (("10 % of the users", True), ("1 %", False)):
            here = [r for r in rows if r["dataset"] == dataset and (r["part"] == 0) == whole]
            for name in ("retrain", *FAKES):
                mine = [r for r in here if r["model"] == name or r["model"].startswith(f"{name} ")]
                if not mine:
                    continue
                said = Counter(r["verified"] for r in mine)
                by = Counter(c["name"] for r in mine for c in r["checks"] if c["passed"] is False)
                numbers = [len(mine), said[True], said[False], said[None]]
                why = ", ".join(f"{check} {n}" for check, n in by.most_common())
                print(f"| {dataset} | {request} | {name} | {' | '.join(map(str, numbers))} | {why} |")
            drops = [
                c["value"] > 0.002
                for r in here
                if r["model"].startswith("retrain")
                for c in r["checks"]
                if c["name"] == "utility" and c["value"] is not None
            ]
            if drops and whole:
                lower = f"{sum(drops)} of {len(drops)} retrains"
                notes.append(f"{dataset}: AUC on D_v lower than the original's by more than .002 in {lower}")
    print("", *notes, sep="\n")


if __name__ == "__main__":
    main()
