"""The commands. Heavy imports are inside them, so that ``curerec --help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curerec.cli import bench, circuit, data_sets, evaluate, requests, service, together
from curerec.cli.inputs import opened_with, quiet, ratings, recipe_for, request_of
from curerec.cli.options import (
    BaseFolder,
    Data,
    Folder,
    MethodSeed,
    Model,
    Out,
    RecipeName,
    RequestFile,
    Seed,
    Settings,
)

app = typer.Typer(
    name="curerec",
    help="Make an LLM-based recommender forget, with a record of what was changed.\n\n"
    "Exit codes: 0 done, 1 refused or not verified, 2 bad input or interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: What an output folder of the name holds; one that holds more is not replaced.
RESULT = frozenset({"recommender", "record.json", "report.html"})
DEMO = frozenset({"original", "cure", "request.csv", "record.json", "report.html"})


def version(show: bool) -> None:
    """Print the version and stop."""
    if show:
        from curerec import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""
    if context.invoked_subcommand not in together.ABLE:
        together.refuse(f"curerec {context.invoked_subcommand}")


data_sets.attach(app)


@app.command(epilog="Example: curerec train --data ml-100k --model nano --out runs/recommender")
def train(
    out: Out,
    data: Data = None,
    model: Model = None,
    recipe: RecipeName = None,
    without: Annotated[
        Path | None, typer.Option("--without", help="Leave out what this request deletes (a retrain).")
    ] = None,
    base: BaseFolder = None,
    seed: Seed = None,
    prepare: Annotated[
        bool,
        typer.Option(
            help="Also take the part of `curerec unlearn` that no request changes, into the user's cache."
        ),
    ] = True,
) -> None:
    """Fine-tune a recommender on ratings."""
    quiet()
    from curerec.cli.bars import bars
    from curerec.cli.say import say_base
    from curerec.data.output import check_out
    from curerec.pipeline import train as run
    from curerec.progress import Clock
    from curerec.recommender.parallel import count, is_main
    from curerec.recommender.storage import CARD

    check_out(out, marker=CARD, inputs=[base])
    chosen = recipe_for(recipe, model, seed)
    request = request_of(without) if without else None
    table, chosen = ratings(data, chosen)
    with bars() as reporter:
        made = run(table, chosen, out, without=request, base=base, clock=Clock(reporter))
        if prepare and request is None and count() == 1:
            prepared(table, out, base, Clock(reporter))
    if not is_main():  # of the processes that `accelerate launch` started
        return
    typer.echo(f"{out}: {made.card['n_train']} prompts, {made.card['train_time_s']:.1f} s")
    if request:
        say_base(table, chosen, request)


def prepared(data: Any, recommender: Path, base: Path | None, clock: Any) -> None:
    """Take the part of a request that is the same for all; what cannot be taken now, the first takes."""
    import contextlib

    from curerec.data.cache import retain_side_at
    from curerec.errors import CurerecError
    from curerec.opened import open_recommender
    from curerec.pipeline import prepare
    from curerec.recommender.memory import as_far_as_it_fits

    with contextlib.suppress(CurerecError), as_far_as_it_fits():
        opened = open_recommender(recommender, data, base=base)
        prepare(opened, retain_side_at(opened.recommender.card["weights_sha256"]), clock=clock)


@app.command(
    epilog="Example: curerec unlearn --recommender runs/recommender --data ml-100k --request request.csv "
    "--out runs/new"
)
def unlearn(
    recommender: Folder,
    request: RequestFile,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; none with --plan.")] = None,
    data: Data = None,
    method: Annotated[
        str, typer.Option("--method", help="cure, npo, scrub, retrain, ...; an unknown name lists all.")
    ] = "cure",
    recipe: Settings = None,
    base: BaseFolder = None,
    seed: MethodSeed = 0,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it would cost here; nothing is written.")
    ] = False,
) -> None:
    """Carry out a deletion request: a new recommender, a record and a report.

    Writes OUT/recommender, OUT/record.json and OUT/report.html. Exit code 1 if the result is not verified.
    """
    quiet()
    if plan:
        together.refuse("curerec unlearn --plan")
        planned(recommender, request, data, method, recipe, base, seed or 0)
        return
    if out is None:
        raise typer.BadParameter("Missing option '--out'")
    from curerec.cli.bars import bars
    from curerec.cli.say import say_base, say_verdict
    from curerec.data.cache import retain_side_at
    from curerec.data.output import check_out, replacing
    from curerec.opened import check_as_trained
    from curerec.pipeline import check_method, save_unlearned
    from curerec.pipeline import unlearn as run
    from curerec.recommender import parallel
    from curerec.recommender.storage import read_card
    from curerec.recording import record_of
    from curerec.reports.html import write_report
    from curerec.reports.schema import write_record
    from curerec.result import STAGE, result_of

    check_method(method, saved=True)
    if parallel.with_fsdp():
        together.refuse_whole("curerec unlearn", method)
    check_out(out, only=RESULT, inputs=[recommender, base])
    asked = request_of(request)
    # A retrain is a training: that of all weights cuts them by itself, for its steps.
    whole = method == "retrain" and read_card(recommender)["kind"] == "full"
    cut = parallel.with_fsdp() and not whole
    with bars() as reporter, parallel.together():
        opened = opened_with(recommender, data, base, settings=recipe, cut=cut)
        check_as_trained(opened)
        config = opened.recipe.config_of(method)
        side = retain_side_at(opened.recommender.card["weights_sha256"])
        outcome, split = run(
            opened, asked, method, config, seed=seed or 0, reporter=reporter, retain_side=side
        )
        advance = reporter.stage(STAGE)
        found = result_of(opened, split, outcome, method, seed=seed or 0)
        advance(1, 1)
        record = record_of(
            opened,
            asked,
            split,
            found.measured,
            outcome,
            method=method,
            config=opened.recipe,
            seed=seed or 0,
            verdict_part=found.verdict,
        )
    parallel.wait()  # all have looked at what is there before one writes
    if not parallel.is_main():  # of the processes that `accelerate launch` started
        return
    with replacing(out, only=RESULT) as stage:
        save_unlearned(opened, outcome, asked, stage / "recommender", config=config)
        record["model"]["output"] = read_card(stage / "recommender")["weights_sha256"]
        write_record(record, stage / "record.json")
        write_report(record, stage / "report.html")
    why = f"; {outcome.stop_reason}" if outcome.stop_reason else ""  # a retrain is not stopped
    typer.echo(f"{out / 'report.html'}: {outcome.t_total_s:.1f} s{why}")
    say_base(opened.data, opened.recipe, asked)
    say_verdict(found.verdict)


def planned(
    recommender: Path,
    request: Path,
    data: str | None,
    method: str,
    recipe: str | None,
    base: Path | None,
    seed: int,
) -> None:
    """Print the estimated cost of a request."""
    from curerec.cli.say import say_plan
    from curerec.data.cache import retain_side_at
    from curerec.opened import check_as_trained
    from curerec.pipeline import check_method
    from curerec.plan import plan

    check_method(method, saved=True)
    asked = request_of(request)
    opened = opened_with(recommender, data, base, settings=recipe)
    check_as_trained(opened)
    side = retain_side_at(opened.recommender.card["weights_sha256"])
    made = plan(opened, asked, method, seed=seed, retain_side=side)
    say_plan(made)


@app.command(epilog="Example: curerec report runs/new/record.json")
def report(
    record: Annotated[Path, typer.Argument(help="record.json of an earlier command.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: report.html beside the record.")] = None,
) -> None:
    """Render a stored record as one self-contained page."""
    import os

    from curerec.errors import StorageError
    from curerec.reports.html import write_report
    from curerec.reports.schema import read_record

    read, page = read_record(record), out or record.with_name("report.html")
    if os.path.exists(page) and page.samefile(record):  # the page does not hold all that the record does
        raise StorageError("is the record itself", where=str(page), mend="Name another --out file")
    typer.echo(write_report(read, page))


@app.command(epilog="Example: curerec demo --out runs/demo")
def demo(
    out: Out = Path("runs/demo"),
    data: Data = None,
    model: Model = None,
    recipe: RecipeName = None,
    seed: Seed = None,
) -> None:
    """The whole path on real ratings: train, forget, retrain, compare, report."""
    quiet()
    from curerec.cli.bars import bars
    from curerec.cli.say import say_scale
    from curerec.data.output import check_out, replacing
    from curerec.experiment import run_experiment
    from curerec.reports.schema import as_record
    from curerec.reports.verdicts import unrankable

    check_out(out, only=DEMO)
    table, chosen = ratings(data, recipe_for(recipe, model, seed))
    with bars() as reporter, replacing(out, only=DEMO) as stage:
        record = run_experiment(table, chosen, stage, reporter=reporter)
    rankable = not unrankable(as_record(record))
    for name, row in record["metrics"].items():
        known = rankable and row.get("residual") is not None
        typer.echo(
            f"{name:<15} test AUC {row['test_auc']:.4f}  membership {row['membership_auc']:.3f}"
            + (f"  residual {row['residual']:.2f}" if known else "")
            + (f"  {row['t_total_s']:.1f} s" if row.get("t_total_s") else "")
        )
    if record["request"]["note"]:
        typer.echo(f"note: {record['request']['note']}")
    say_scale(record["floor_jsd"], record["ceiling_jsd"], rankable=rankable)
    typer.echo(f"report: {out / 'report.html'}")


evaluate.attach(app)
circuit.attach(app)
requests.attach(app)
service.attach(app)
bench.attach(app)
