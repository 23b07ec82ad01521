"""Residuals of a committed benchmark as one picture: mean and 95 % interval of every method.

    python benchmarks/quality/picture.py benchmarks/quality/nano --dataset ml-100k --out PICTURE.svg

The rows are read anew, nothing is measured. Of several folders, runs of one recipe on other seeds each, the
rows are taken together.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curerec.bench.summary import summarise
from curerec.reports.alone import standalone
from curerec.reports.bench_pictures import residuals
from curerec.reports.bench_schema import as_bench
from curerec.reports.files import replace_file


def together(folders: Sequence[Path]) -> dict[str, Any]:
    """The summary of runs as of one, by the recipe of the last, of the seeds of all.

    Raises:
        SystemExit: two of them have a seed in common.
    """
    recipes = [json.loads((folder / "bench.json").read_text(encoding="utf-8")) for folder in folders]
    seeds = [seed for recipe in recipes for seed in recipe["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise SystemExit("two folders have a seed in common: name runs of other seeds each")
    every = [request | {"seeds": None} for request in recipes[-1]["requests"]]  # a run may have fewer of some
    recipe = recipes[-1] | {"seeds": seeds, "requests": every}
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place)
        (whole / "bench.json").write_text(json.dumps(recipe), encoding="utf-8")
        (whole / "rows.jsonl").write_bytes(b"".join((f / "rows.jsonl").read_bytes() for f in folders))
        return summarise(whole)


def main() -> None:
    """One picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--request", default="users-0.1-random")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    wanted = (args.dataset, args.model, args.request)
    one = len(args.folder) == 1
    for block in as_bench(summarise(args.folder[0]) if one else together(args.folder)).blocks:
        if (block.dataset, block.model, block.request) == wanted:
            replace_file(args.out, standalone(residuals(block)))
            return
    raise SystemExit(f"{', '.join(map(str, args.folder))}: nothing of {', '.join(wanted)}")


if __name__ == "__main__":
    main()
