"""The seeds of a `curerec bench` run whose originals and retrains a benchmark looks at again."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from curerec.bench.artefacts import opened_with, trained
from curerec.bench.lines import append_line, read_lines
from curerec.bench.recipe import BenchRecipe
from curerec.bench.rows import Row
from curerec.bench.sequence import deleted_rows, parts_of
from curerec.cli.inputs import quiet
from curerec.config import read_yaml
from curerec.data.fetch import load
from curerec.data.forget import without_rows
from curerec.machine import versions
from curerec.opened import Opened
from curerec.records import ForgetSplit
from curerec.splitting import drawn_request, granted


@dataclass(frozen=True)
class Seed:
    """A seed's original, the retrains of a request, and that request.

    Attributes:
        opened: the original with its data.
        retrains: trained without the whole request.
        split: the request applied.
    """

    number: int
    opened: Opened
    retrains: list[Opened]
    split: ForgetSplit
    tenths: list[ForgetSplit]

    def requests(self, parts: int) -> Iterator[tuple[int, ForgetSplit]]:
        """The request in one piece (0), and so many of its ten parts, each a request by itself.

        A part leaves the other nine to the model; the retrains saw none of them.
        """
        yield 0, self.split
        yield from enumerate(self.tenths[:parts], 1)


def run(description: str, rows: Path, parts: int, of: Callable[[Seed, int], Iterator[Row]]) -> list[Row]:
    """The command of a benchmark: rows of the seeds that have none yet are made.

    Args:
        description: its docstring.
        rows: where they go, all of a seed at once.
        parts: of ten that a request is looked at in, unless the command says otherwise.
        of: the rows of a seed and so many parts, without ``dataset``, ``kind``, ``seed`` and ``versions``.

    Returns:
        The rows that there are then, of all seeds or of those that are named.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--models", type=Path, help="folder of the run")
    parser.add_argument("--dataset", default="ml-100k", help="its name in the recipe")
    parser.add_argument("--data", help="name or folder, where the name does not find it")
    parser.add_argument(
        "--kind", default="users", help="of the request: the recipe's first of users, items or interactions"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the recipe's; of a table, all")
    parser.add_argument("--parts", type=int, default=parts, help="of ten, requests by themselves")
    parser.add_argument("--table", action="store_true", help="print the rows that there are")
    asked = parser.parse_args()
    if not asked.table:
        _fill(parser, asked, rows, of)
    return [row for row in stored(rows) if asked.seeds is None or row["seed"] in asked.seeds]


def stored(rows: Path) -> list[Row]:
    """The rows of all seeds; of one that a kill stopped there are none.

    A line holds all rows of a seed (:func:`store`). Earlier lines are a row each.
    """
    lines = [line.get("rows", [line]) for line in read_lines(rows)]
    return [{"kind": "users", **row} for line in lines for row in line]


def store(rows: Path, made: list[Row]) -> None:
    """Add the rows of a seed: all of them or, where a kill comes between, none."""
    append_line(rows, {"rows": made})


def _fill(
    parser: argparse.ArgumentParser,
    asked: argparse.Namespace,
    rows: Path,
    of: Callable[[Seed, int], Iterator[Row]],
) -> None:
    if asked.recipe is None or asked.models is None:
        parser.error("--recipe and --models: which run?")
    quiet()
    bench = read_yaml(BenchRecipe, asked.recipe)
    for seed in asked.seeds or bench.seeds:
        where = {"dataset": asked.dataset, "seed": seed, "kind": asked.kind}
        if any(where.items() <= row.items() for row in stored(rows)):
            continue
        place = asked.data or asked.dataset
        one = opened_seed(bench, asked.models, asked.dataset, place, seed, asked.kind)
        store(rows, [{**where, **row, "versions": versions()} for row in of(one, asked.parts)])


def opened_seed(
    bench: BenchRecipe, out: Path, dataset: str, place: str, seed: int, kind: str = "users"
) -> Seed:
    """A seed with its models, which are trained where they are not there."""
    data = load(place)
    mine = [a for a in bench.requests if a.datasets is None or dataset in a.datasets]
    ask = next(a for a in mine if a.kind == kind)
    recipe = bench.setting(dataset, next(iter(bench.models)), ask=ask, seed=seed)
    opened = opened_with(trained(data, recipe, out), data, recipe, None)
    request = drawn_request(data, recipe, opened.split)
    retrains = [
        opened_with(trained(data, recipe, out, without=request, number=k), data, recipe, None)
        for k in range(bench.retrains)
    ]
    tenths = [
        without_rows(data, opened.split, deleted_rows(data, part), source="part")
        for part in parts_of(request, 10, seed)
    ]
    return Seed(seed, opened, retrains, granted(data, recipe, opened.split, request), tenths)
