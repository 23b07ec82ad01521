"""Residuals of a committed benchmark as one picture: mean and 95 % interval of every method.

    python benchmarks/quality/picture.py benchmarks/quality/nano --dataset ml-100k --out PICTURE.svg

The rows are read anew, nothing is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from curerec.bench.summary import summarise
from curerec.reports.alone import standalone
from curerec.reports.bench_pictures import residuals
from curerec.reports.bench_schema import as_bench
from curerec.reports.files import replace_file


def main() -> None:
    """One picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--request", default="users-0.1-random")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    wanted = (args.dataset, args.model, args.request)
    for block in as_bench(summarise(args.folder)).blocks:
        if (block.dataset, block.model, block.request) == wanted:
            replace_file(args.out, standalone(residuals(block)))
            return
    raise SystemExit(f"{args.folder} has nothing of {', '.join(wanted)}")


if __name__ == "__main__":
    main()
