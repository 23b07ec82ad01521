"""Run the demo's recipe over seeds and append its rows; a seed that is already there is skipped.

A seed draws everything anew, the split and the base model too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from curerec.cli.bars import bars
from curerec.cli.inputs import quiet, ratings
from curerec.experiment import run_experiment
from curerec.recipes import load_recipe

HERE = Path(__file__).parent


def main() -> None:
    """Parse, run, append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--data", default=None, help="name or path; default: the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[51, 52, 53])
    parser.add_argument("--retrains", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["random_modules", "npo", "ga_kl"])
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    options = parser.parse_args()
    quiet()
    recipe = load_recipe(options.recipe)
    data, recipe = ratings(options.data, recipe)
    config_hash = recipe.seeded(0).digest  # seeds of one configuration share it
    for seed in options.seeds:
        chosen = recipe.seeded(seed)
        if (seed, config_hash) in done(options.results):
            continue
        with tempfile.TemporaryDirectory() as folder, bars() as reporter:
            record = run_experiment(
                data,
                chosen,
                Path(folder) / "run",
                retrains=options.retrains,
                rivals=tuple(options.methods),
                reporter=reporter,
            )
        with options.results.open("a", encoding="utf-8") as file:
            for name, row in record["metrics"].items():
                line = {
                    "model": name,
                    "seed": seed,
                    "dataset": record["dataset"]["name"],
                    "fingerprint": record["dataset"]["fingerprint"],
                    "base": record["model"]["base"],
                    "forget_kind": record["request"]["kind"],
                    "forget_share": chosen.request.share,
                    "n_forget": record["split"]["forget"],
                    "floor_jsd": record["floor_jsd"],
                    "ceiling_jsd": record["ceiling_jsd"],
                    **row,
                    "stop_reason": record["update"]["stop_reason"] if name == "cure" else None,
                    "verified": record["verdict"]["verified"] if name == "cure" else None,
                    "faithfulness": record["circuit"]["faithfulness"] if name == "cure" else None,
                    "group_agreement": record["groups"]["agreement"] if name == "cure" else None,
                    "config_hash": config_hash,
                    "versions": record["versions"],
                    "machine": record["machine"],
                    "created": record["created"],
                }
                file.write(json.dumps(line, sort_keys=True) + "\n")


def done(path: Path) -> set[tuple[int, str]]:
    """Seeds and configurations that have rows."""
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["seed"], row["config_hash"]) for row in rows}


if __name__ == "__main__":
    main()
