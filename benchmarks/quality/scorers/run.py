"""Compare all scorers on one trained recommender and append a row for each."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from curerec.circuits import SCORERS
from curerec.circuits.core import find_core
from curerec.circuits.counterfactuals import counterfactual_report
from curerec.circuits.patching import moving_pairs, patched_margins
from curerec.circuits.stability import agreement
from curerec.cli.app import quiet
from curerec.data.fetch import load
from curerec.pipeline import machine, open_recommender, versions
from curerec.prompts.counterfactual import counterfactual_pairs
from curerec.prompts.encoding import Encoder, queries
from curerec.recommender.storage import load_base

HERE = Path(__file__).parent
COLUMNS = (
    "scorer", "spearman", "pearson", "top_recall", "passes", "time_s", "size", "faithfulness", "completeness",
    "cpr", "cmd", "jaccard", "auc_kept", "auc_without", "auc_random",
)  # fmt: skip


def main() -> None:
    """Parse, score, append, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recommender", type=Path, required=True)
    parser.add_argument("--data", required=True, help="name or path")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--pool", type=int, default=512, help="prompts that pairs are made from")
    parser.add_argument("--test", type=int, default=1000, help="prompts of the AUC")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    options = parser.parse_args()
    quiet()
    data = load(options.data)
    opened = open_recommender(options.recommender, data)
    model, answers = opened.recommender.model, opened.recommender.answers
    encoder = Encoder(
        opened.recommender.tokenizer, opened.recommender.template, data.titles["title"].to_pylist()
    )
    rng = np.random.default_rng([options.seed, 73])
    rows = opened.split.train.target

    def pairs_of(part: Any, n: int) -> Any:
        chosen = part.take(rng.permutation(len(part))[:n])
        return counterfactual_pairs(data, queries(data, chosen), encoder, rows, seed=options.seed)

    made = pairs_of(opened.split.valid, options.pool)
    report = counterfactual_report(model, made, encoder, data, rows)
    clean, corrupt = encoder.encode(made.clean), encoder.encode(made.corrupt)
    moved = moving_pairs(model, clean, corrupt, answers, options.pairs)
    clean, corrupt = clean.take(moved), corrupt.take(moved)
    judged = pairs_of(opened.split.test, options.test)
    test = encoder.encode(judged.clean), encoder.encode(judged.corrupt)
    lora = hasattr(model, "peft_config")
    base = {} if lora else {"base_state": load_base(opened.base)[0].state_dict()}
    truth = None
    table = []
    for name, scorer in SCORERS.items():  # ``exact`` comes first
        extra = base if name == "adapter" else {}
        start = time.perf_counter()
        found = scorer(model, clean, corrupt, answers, **extra)
        time_s = time.perf_counter() - start
        mean = found.values.mean(0)
        truth = mean if truth is None else truth
        core = find_core(model, clean, corrupt, answers, scorer=name, options=extra, seed=options.seed)
        inside = {core.modules[k] for k in core.core}
        row = {
            "scorer": name,
            **agreement(mean, truth),
            "passes": found.cost.forward_equivalents,
            "time_s": time_s,
            "size": len(core.core),
            **{k: getattr(core, k) for k in ("faithfulness", "completeness", "cpr", "cmd", "jaccard")},
            **knocked_out(model, test, answers, set(core.modules), inside, rng),
            "pairs": len(clean),
            "counterfactuals": report.counts(),
            "notes": list(core.notes),
            "dataset": data.name,
            "base": opened.recommender.base,
            "seed": options.seed,
            "versions": versions(),
            "machine": machine(),
        }
        table.append(row)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in table:
        cells = [f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS]
        print("| " + " | ".join(cells) + " |")


def knocked_out(
    model: Any, test: Any, answers: Any, everything: set[str], inside: set[str], rng: np.random.Generator
) -> dict[str, float]:
    """Test AUC with all but the circuit patched, with it, and with random sets of its size patched."""
    clean, corrupt = test
    randoms = [set(rng.choice(sorted(everything), len(inside), replace=False)) for _ in range(5)]
    margins = patched_margins(model, clean, corrupt, answers, [set(), everything - inside, inside, *randoms])
    sign = 2.0 * clean.label - 1
    auc = [float(roc_auc_score(clean.label, m * sign)) for m in margins]
    return {"auc": auc[0], "auc_kept": auc[1], "auc_without": auc[2], "auc_random": float(np.mean(auc[3:]))}


if __name__ == "__main__":
    main()
