"""``curerec bench``: run a benchmark, or print the table of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from curerec.cli import together

Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Bench recipe that ships (nano, nano_searched, smollm2, paper, scale) or a YAML file.",
    ),
]
BenchOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the run. Default: runs/bench-NAME."),
]
Table = Annotated[
    Path | None,
    typer.Option("--table", help="Print the table of a run and write its bench.html."),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Cells at a time, each a process of its own.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Of each process. Default: the processors shared out.")
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", min=0.1, help="Begin nothing that will likely not be done by then."),
]
Places = Annotated[
    list[str] | None,
    typer.Option("--data", help="NAME=PATH: where a data set of the recipe is. May be repeated."),
]
Retry = Annotated[bool, typer.Option("--retry", help="Run cells again that failed before.")]


def attach(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: curerec bench --recipe nano --out runs/nano --jobs 2")(bench)


def bench(
    recipe: Recipe = None,
    out: BenchOut = None,
    table: Table = None,
    data: Places = None,
    jobs: Jobs = 1,
    threads: Threads = None,
    minutes: Minutes = None,
    retry: Retry = False,
) -> None:
    """Compare methods over data sets, models, requests and seeds.

    Writes OUT/rows.jsonl, OUT/trials.jsonl, OUT/summary.json and OUT/bench.html. The same command goes on
    after a kill. Started by `accelerate launch`, it does as many cells at a time as there are processes.
    Exit code 1 if something that cells wait for could not be made.
    """
    from curerec.cli.inputs import quiet
    from curerec.errors import ConfigError

    if table is not None:
        together.refuse("curerec bench --table")
    if (table is None) == (recipe is None):
        raise ConfigError("give one of --recipe and --table", where="bench", mend="See curerec bench --help")
    quiet()
    from curerec.bench.summary import summarise, write_summary
    from curerec.bench.table import text_table
    from curerec.reports.bench_page import write_bench

    if table is not None:
        found = summarise(table)
        typer.echo(text_table(found), nl=False)
        write_bench(found, table / "bench.html")
        return
    started = together.processes()
    if started > 1:  # by `accelerate launch`: cells depend on nothing of each other, each process has its own
        if not together.one_writer():
            return
        jobs = max(jobs, started)
    from curerec.bench.recipe import load_bench
    from curerec.bench.run import run

    assert recipe is not None
    chosen = load_bench(recipe)
    places = _places(data or [], chosen.datasets)
    folder = out or Path("runs") / f"bench-{chosen.name}"
    begun = False

    def at_end() -> None:
        nonlocal begun
        if (folder / "rows.jsonl").exists():
            begun = True
            write_summary(folder)

    try:
        sitting = run(
            chosen,
            folder,
            jobs=jobs,
            threads=threads,
            minutes=minutes,
            places=places,
            retry=retry,
            tell=lambda line: typer.echo(line, err=True),
            at_end=at_end,
        )
    except BaseException:
        if begun:
            typer.echo(f"{folder}: the rows so far are kept; the same command goes on from there", err=True)
        raise
    page = folder / "bench.html"  # there is none before the first row
    typer.echo(f"{page if page.exists() else folder}: {sitting.done} of {sitting.total} cells")
    if sitting.stopped:
        typer.echo(f"{sitting.stopped}: the same command goes on from here")
    for label, why in sitting.failed:
        typer.echo(f"failed: {label}: {why}")
    for why, n in sitting.blocked.items():
        typer.echo(f"{n} cells were not run. {why}")
    if sitting.blocked:
        raise typer.Exit(1)


def _places(pairs: list[str], known: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Where each data set is that the command names; one that is nowhere is told before hours have passed."""
    from curerec.data.fetch import DATASETS
    from curerec.errors import ConfigError, DataError

    out = {}
    for pair in pairs:
        name, sign, path = pair.partition("=")
        if not sign or name not in known:
            mend = f"Write NAME=PATH with a name of {', '.join(known)}"
            raise ConfigError("names no data set of the recipe", where="--data", mend=mend)
        out[name] = path
    for name, settings in known.items():
        place = out.get(name) or settings.get("data", name)
        if place not in DATASETS and not Path(place).exists():
            mend = f"Say where it is: --data {name}=PATH"
            raise DataError("is no public data set and not there", where=f"data set {name}", mend=mend)
    return out
