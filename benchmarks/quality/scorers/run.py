"""Compare all scorers on one trained recommender, and ask of each circuit whether it matters; a row each."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from curerec.aligned import aligned
from curerec.circuits import SCORERS
from curerec.circuits.choice import cheapest_trusted
from curerec.circuits.compact import fewest_parts
from curerec.circuits.core import find_core
from curerec.circuits.edge_core import stable_edges
from curerec.circuits.faithfulness import Faithfulness, judge_edges, judge_modules
from curerec.circuits.matters import matters
from curerec.circuits.necessary import necessary
from curerec.circuits.patching import moving_pairs
from curerec.circuits.selection import JUDGED, halves
from curerec.circuits.stability import agreement
from curerec.cli.inputs import quiet
from curerec.data.fetch import load
from curerec.machine import machine, versions
from curerec.opened import open_recommender
from curerec.recommender.storage import load_base

HERE = Path(__file__).parent
MATTERS = ("auc", "auc_floor", "auc_kept", "auc_without", "auc_random", "margin_kept")
COLUMNS = (
    "scorer", "corruption", "spearman", "pearson", "top_recall", "passes", "time_s", "of", "size",
    "faithfulness", "completeness", "cpr", "cmd", "jaccard", *MATTERS, "needed", "auc_without_needed",
    "auc_random_needed",
)  # fmt: skip


def main() -> None:
    """Parse, score, append, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recommender", type=Path, required=True)
    parser.add_argument("--data", required=True, help="name or path")
    parser.add_argument("--corruption", nargs="+", default=["prompt", "history"])
    parser.add_argument("--scorers", nargs="+", default=list(SCORERS), help="exact is the yardstick of all")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--pool", type=int, default=800, help="prompts that pairs are made from")
    parser.add_argument("--test", type=int, default=600, help="prompts of the AUC; 0: leave it out")
    parser.add_argument(
        "--tested", nargs="+", help="scorers whose circuit is tried on test prompts; default: all"
    )
    parser.add_argument(
        "--fewest", action=argparse.BooleanOptionalAction, default=True, help="by elimination"
    )
    parser.add_argument("--edges", type=int, default=128, help="pairs of edges at first; 0: none")
    parser.add_argument("--edges-most", type=int, default=512, help="where resamples overturn them")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    options = parser.parse_args()
    quiet()
    data = load(options.data)
    opened = open_recommender(options.recommender, data)
    table: list[dict[str, Any]] = []
    for corruption in options.corruption:
        for row in rows(opened, corruption, options):
            row |= {
                "corruption": corruption,
                "dataset": data.name,
                "base": opened.recommender.base,
                "weights_sha256": opened.recommender.card.get("weights_sha256"),
                "seed": options.seed,
                "versions": versions(),
                "machine": machine(),
            }
            table.append(row)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in table:
        cells = [row.get(c, "") for c in COLUMNS]
        print("| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    print(f"default by the rule: {cheapest_trusted([r for r in table if r['scorer'] in SCORERS])}")


def rows(opened: Any, corruption: str, options: Any) -> Any:
    """A row a scorer, one of the fewest parts and one of the circuit of edges."""
    model, answers = opened.recommender.model, opened.recommender.answers
    rng = np.random.default_rng([options.seed, 73])

    def drawn(part: Any, n: int) -> Any:
        return part.take(rng.permutation(len(part))[:n])

    made = aligned(opened, drawn(opened.split.valid, options.pool), corruption, seed=options.seed)
    history = corruption == "history"
    wanted = options.pairs if history or not options.edges else max(options.pairs, options.edges_most)
    most = wanted if history else len(made.clean)
    moved = moving_pairs(model, made.clean, made.corrupt, answers, most, batch_size=options.batch)
    of_edges = made.take(rng.permutation(moved)[:wanted])
    pairs = of_edges.take(np.arange(min(options.pairs, len(of_edges.clean))))
    test = None
    if options.test:
        examples = drawn(opened.split.test, options.test)
        test = aligned(opened, examples, corruption, opposite=False, seed=options.seed)
    lora = hasattr(model, "peft_config")
    base = {} if lora else {"base_state": load_base(opened.base)[0].state_dict()}
    _, judging = halves(len(pairs.clean), options.seed)
    ranking, _ = halves(len(pairs.clean), options.seed)
    truth = None
    for name in options.scorers:
        extra = base if name == "adapter" else {}
        start = time.perf_counter()
        found = SCORERS[name](model, pairs.clean, pairs.corrupt, answers, batch_size=options.batch, **extra)
        time_s = time.perf_counter() - start
        mean = found.values.mean(0)
        truth = mean if truth is None else truth
        core = find_core(
            model, pairs.clean, pairs.corrupt, answers, scorer=name, found=found, seed=options.seed,
            batch_size=options.batch,
        )  # fmt: skip
        row = {
            "scorer": name,
            **agreement(mean, truth),
            "passes": found.cost.forward_equivalents,
            "time_s": time_s,
            "of": len(core.modules),
            "size": len(core.core),
            **{k: getattr(core, k) for k in ("faithfulness", "completeness", "cpr", "cmd", "jaccard")},
            "pairs": len(pairs.clean),
            "counterfactuals": pairs.counts,
            "notes": list(core.notes),
        }
        if test is not None and (not options.tested or name in options.tested):

            def judge(part: Any, names: Any = core.modules) -> Any:
                return judge_modules(
                    model, part.clean, part.corrupt, answers, names, batch_size=options.batch
                )

            best = np.where(np.isfinite(core.exact), core.exact, core.scores[ranking].mean(0))
            row |= knocked_out(judge(pairs.take(judging)), judge(test), core, best, test, options.seed)
        yield row
    if options.fewest:
        start = time.perf_counter()
        fewest = fewest_parts(
            model, pairs.clean, pairs.corrupt, answers, seed=options.seed, batch_size=options.batch
        )
        row = {
            "scorer": "elimination",
            "time_s": time.perf_counter() - start,
            "of": len(fewest.order),
            "size": len(fewest.members),
            "members": [core.modules[k] for k in fewest.members],
            "faithfulness": fewest.faithfulness,
            "pairs": len(pairs.clean),
        }
        if test is not None:
            on_test = judge_modules(
                model, test.clean, test.corrupt, answers, core.modules, batch_size=options.batch
            )
            found = matters(
                on_test, len(fewest.order), fewest.members, test.clean.label, draws=10, seed=options.seed
            )
            row |= {
                k: found[k] for k in (*MATTERS, "margin_random_kept", "auc_random_low", "auc_random_high")
            }
        yield row
    if options.edges:
        edges = stable_edges(
            model, of_edges.clean, of_edges.corrupt, answers, start=options.edges, seed=options.seed,
            batch_size=options.batch,
        )  # fmt: skip
        few = of_edges.take(np.arange(len(edges.scores)))
        ranking, judging = halves(len(few.clean), options.seed, judged=JUDGED)
        row = {
            "scorer": f"edges, {edges.scorer}",
            "granularity": edges.granularity,
            "of": len(edges.source),
            "size": len(edges.core),
            **{k: getattr(edges, k) for k in ("faithfulness", "completeness", "cpr", "cmd", "jaccard")},
            "pairs": len(few.clean),
            "notes": list(edges.notes),
        }
        if test is not None:

            def judge_e(part: Any) -> Any:
                return judge_edges(model, part.clean, part.corrupt, answers, batch_size=options.batch)

            mean = edges.scores[ranking].mean(0)
            row |= knocked_out(judge_e(few.take(judging)), judge_e(test), edges, mean, test, options.seed)
        yield row


def knocked_out(
    judge: Any, on_test: Any, circuit: Any, mean: np.ndarray, test: Any, seed: int
) -> dict[str, Any]:
    """Test AUC without the circuit and without what it cannot do without, beside random sets."""
    total, label = len(mean), test.clean.label
    needed = necessary(Faithfulness(judge, total), mean)
    core = matters(on_test, total, circuit.core, label, draws=5, seed=seed)
    other = matters(on_test, total, needed.members, label, draws=5, seed=seed)
    return {
        **{k: core[k] for k in MATTERS},
        "margin_random_kept": core["margin_random_kept"],
        "needed": len(needed.members),
        "needed_members": [circuit_name(circuit, k) for k in needed.members],
        "needed_lost": needed.lost,
        "auc_without_needed": other["auc_without"],
        "auc_random_needed": other["auc_random"],
        "auc_random_needed_low": other["auc_random_low"],
        "test": len(label),
    }


def circuit_name(circuit: Any, k: int) -> str:
    """Name of a module or edge."""
    return circuit.names[k] if hasattr(circuit, "names") else circuit.modules[k]


if __name__ == "__main__":
    main()
