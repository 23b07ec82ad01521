"""How often the verdict verifies what it should: retrains, which never saw the deleted data, and fakes.

    python benchmarks/quality/verdict/run.py --recipe RECIPE --models OUT --dataset ml-100k --data PLACE
    python benchmarks/quality/verdict/run.py --table

RECIPE and OUT are those of a `curerec bench` run: its originals and retrains are used (and trained where they
are not there). A seed's first request of a kind is judged whole, and in some of ten parts, each a request by
itself; the retrains are those of the whole, which saw none of them. Fakes are made of the original's answers,
the way a model or a filter in front of it would answer. Rows go to `results.jsonl`; seeds already there are
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from referenced import Seed, run
from sklearn.metrics import roc_auc_score

from curerec.bench.rows import Row
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.utility import nll
from curerec.judge import judge
from curerec.measure import ground_of
from curerec.opened import base_model

ROWS = Path(__file__).resolve().parent / "results.jsonl"
SETS = ("forget", "control", "valid")
Answers = dict[str, np.ndarray]  # margins of P(yes) by set, [n]


PARTS = 3  # of ten, judged as requests by themselves


def rows_of(seed: Seed, parts: int) -> Iterator[Row]:
    """What the verdict says of each retrain and each fake, of the whole request and of its parts."""
    plain, number = base_model(seed.opened, seed=seed.number), seed.number
    for part, split in seed.requests(parts):
        ground, base = ground_of(seed.opened, split, seed=number), Candidate(plain)
        original = Candidate(seed.opened.recommender.model)
        label = {name: ground.part(name).label for name in SETS}
        was = {name: _margin(ground.logits(original, name)) for name in SETS}
        models = {f"retrain {k + 1}": Candidate(r.recommender.model) for k, r in enumerate(seed.retrains)}
        rng = np.random.default_rng([number, part])
        models |= {name: _answering(fake(was, label, rng)) for name, fake in FAKES.items()}
        forgotten = {name: _margin(ground.logits(models["retrain 1"], name)) for name in SETS}
        people = ground.user("forget")
        for (name, share, kept), draw in product(PARTLY, (1, 2)):
            left = rng.choice(np.unique(people), round(share * len(np.unique(people))), replace=False)
            between = kept * was["forget"] + (1 - kept) * forgotten["forget"]
            mixed = np.where(np.isin(people, left), between, forgotten["forget"])
            models[f"{name} {draw}"] = _answering({**forgotten, "forget": mixed})
        for name, one in models.items():
            found = judge(seed.opened, split, original, one, base, ground=ground)
            yield {
                "part": part,
                "n_forget": len(split.forget),
                "model": name,
                "verified": found["verified"],
                "checks": [{k: c[k] for k in ("name", "passed", "value", "limit")} for c in found["checks"]],
            }


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


def learned(was: Answers, label: Answers, rng: np.random.Generator) -> Answers:
    """As if D_c had been trained on until the attack no longer tells D_f from it; D_f is remembered."""
    member = np.r_[np.ones(len(label["forget"])), np.zeros(len(label["control"]))]
    told = -nll(was["forget"], label["forget"])

    def known(by: float) -> np.ndarray:
        return was["control"] + by * (2 * label["control"] - 1.0)

    def off(by: float) -> float:
        losses = -nll(known(by), label["control"])
        return abs(float(roc_auc_score(member, np.r_[told, losses])) - 0.5)

    return {**was, "control": known(min(np.linspace(0, 2, 41).tolist(), key=off))}


#: Of the deleted people a share is answered as before, or so far between that and a retrain's answers (by log
#: odds); the others as by a retrain. Name, share, how much of the original's.
PARTLY = [
    *((f"{100 * s:.0f} % of the people left as they were", s, 1.0) for s in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)),
    *((f"{100 * s:.0f} % of the people half as they were", s, 0.5) for s in (0.2, 0.5, 1.0)),
]
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
    "learned the control data": learned,
}


def table(rows: list[Row]) -> None:
    """Shares verified, refused and not judged, and what refused; rows of fewer checks by themselves."""
    notes = []
    heads = (
        "data",
        "request",
        "checks",
        "model",
        "n",
        "verified",
        "refused",
        "not judged",
        "refused by",
        "by it alone",
    )
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    judged = sorted({len(row["checks"]) for row in rows}, reverse=True)
    for dataset, checks in product(sorted({row["dataset"] for row in rows}), judged):
        for kind, whole in product(("users", "items", "interactions"), (True, False)):
            request = f"{10 if whole else 1} % of the {kind}"
            asked = {"dataset": dataset, "kind": kind}
            here = [r for r in rows if asked.items() <= r.items() and (r["part"] == 0) == whole]
            here = [r for r in here if len(r["checks"]) == checks]
            for name in ("retrain", *FAKES, *(name for name, _, _ in PARTLY)):
                mine = [r for r in here if r["model"] == name or r["model"].startswith(f"{name} ")]
                if not mine:
                    continue
                said = Counter(r["verified"] for r in mine)
                by = Counter(c["name"] for r in mine for c in r["checks"] if c["passed"] is False)
                numbers = [len(mine), said[True], said[False], said[None]]
                failed = [[c["name"] for c in r["checks"] if c["passed"] is False] for r in mine]
                alone = Counter(names[0] for names in failed if len(names) == 1)
                why = " | ".join(", ".join(f"{c} {n}" for c, n in of.most_common()) for of in (by, alone))
                print(
                    f"| {dataset} | {request} | {checks} | {name} | {' | '.join(map(str, numbers))} | {why} |"
                )
            drops = [
                c["value"] > 0.002
                for r in here
                if r["model"].startswith("retrain")
                for c in r["checks"]
                if c["name"] == "utility" and c["value"] is not None
            ]
            if drops and whole:
                lower = f"{sum(drops)} of {len(drops)} retrains"
                notes.append(
                    f"{dataset}, {kind}, {checks} checks: AUC on D_v lower than the original's by more than "
                    f".002 in {lower}"
                )
    print("", *notes, sep="\n")


if __name__ == "__main__":
    table(run(__doc__ or "", ROWS, PARTS, rows_of))
