"""``curerec evaluate``: measure and judge an unlearned recommender."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from curerec.cli.inputs import opened_with, quiet, request_of
from curerec.cli.options import BaseFolder, Data, Folder, RequestFile

OTHERS = (
    "the model was unlearned by other settings, or by another version; those shown are the ones stored with "
    "the recommender"
)

#: What an output folder of the command holds; one that holds more is not replaced.
JUDGED = frozenset({"record.json", "report.html"})


def evaluate(
    recommender: Folder,
    unlearned: Annotated[Path, typer.Option("--unlearned", help="Recommender folder to judge.")],
    request: RequestFile,
    data: Data = None,
    retrain: Annotated[
        list[Path] | None,
        typer.Option("--retrain", help="Folder of `curerec train --without`; two or more give a floor."),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--also",
            help="Recommender of the same method and request with another --seed; two or more, and three "
            "retrains, give jsd_mean.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for record.json and report.html.")] = None,
    verdict: Annotated[
        bool,
        typer.Option(
            "--verdict",
            help="Exit with 1 also where a check could not be judged or, with retrains, the residual is 1 or "
            "more.",
        ),
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="Also compute this metric or attack; `attacks`: all but U-LiRA; an unknown name lists all.",
        ),
    ] = None,
    shadows: Annotated[
        Path | None,
        typer.Option("--shadows", help="Folder of shadow models for U-LiRA; made there, 16 trainings long."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", min=0, help="Seconds after which no further shadow model is begun."),
    ] = None,
    base: BaseFolder = None,
) -> None:
    """Measure an unlearned recommender against the original and, where given, retrains."""
    quiet()
    from curerec.cli.bars import bars
    from curerec.cli.say import say_base, say_other_request, say_values, say_verdict, table_of
    from curerec.data.output import check_out, replacing
    from curerec.judge import judge
    from curerec.measure import Candidate, ground_of, measure, method_of, names_for, of_others
    from curerec.opened import base_model, check_lengthened, open_recommender
    from curerec.pipeline import check_method
    from curerec.recording import record_of
    from curerec.references import check_references, check_repeats
    from curerec.reports.html import write_report
    from curerec.reports.schema import retrain_names, write_record
    from curerec.splitting import granted

    read = [recommender, unlearned, *(retrain or []), *(also or []), base]
    if out is not None:
        check_out(out, only=JUDGED, inputs=[*read, shadows])
    if shadows is not None:  # among a recommender's files they would count as its weights
        from curerec.shadows import stored_in

        check_out(shadows, only=stored_in(shadows), inputs=read, option="--shadows")
    names = names_for(metric or [], shadows=shadows is not None)
    asked = request_of(request)
    check_references(retrain or [], recommender, asked)
    check_repeats(also or [], unlearned, asked)
    opened = opened_with(recommender, data, base)
    table = opened.data
    split = granted(table, opened.recipe, opened.split, asked)
    check_lengthened(opened, split)
    judged = open_recommender(unlearned, table, base=opened.base).recommender
    name = method_of(judged.card)
    models = {"original": Candidate(opened.recommender.model), name: Candidate(judged.model)}
    # A retrain that is judged itself has the first of these names.
    free = (n for n in retrain_names() if n != name)
    references = {}
    for reference, path in zip(free, retrain or [], strict=False):
        other = open_recommender(path, table, base=opened.base).recommender
        seconds = other.card.get("train_time_s")
        conditions = other.card.get("timed_on") or {}
        references[reference] = Candidate(other.model, seconds, seconds, timed_on=conditions)
    repeats = [
        Candidate(open_recommender(path, table, base=opened.base).recommender.model) for path in also or []
    ]
    ground = ground_of(opened, split)
    with bars() as reporter:
        made: dict[str, Any] = {}
        if shadows is not None:
            from curerec.shadows import make_shadows, why_none

            check_method(name)
            made[name] = why_none(judged.card, opened.recipe.config_of(name))
            if made[name] is None:
                advance = reporter.stage("shadow models")
                made[name] = make_shadows(opened, split, name, shadows, budget_s=budget, progress=advance)
        measured = measure(
            opened,
            split,
            models,
            references,
            names=names,
            ground=ground,
            shadows=made,
            seeds={name: repeats},
            progress=reporter.stage("measure"),
        )
    plain = Candidate(base_model(opened, seed=0))
    # What training stored of D_r is its keeper's word, and this judges the keeper.
    asking = replace(opened, answered=None)
    found = judge(asking, split, models["original"], models[name], plain, ground=ground)
    table_of(measured)
    say_values(measured, metric or [], shadows=shadows is not None)
    say_base(table, opened.recipe, asked)
    say_other_request(judged.card, asked)
    if out is not None:
        record = record_of(
            opened,
            asked,
            split,
            measured,
            None,
            method=name,
            config=opened.recipe,
            seed=opened.recipe.seed,
            verdict_part=found,
            output=judged.card["weights_sha256"],
        )
        record["request"]["other"] = of_others(judged.card, asked)
        if others := other_settings(judged.card, opened.recipe, name):
            record["missing"]["config"] = others
        with replacing(out, only=JUDGED) as stage:
            write_record(record, stage / "record.json")
            write_report(record, stage / "report.html")
    say_verdict(found, strict=verdict, residual=measured.residual.get(name) if measured.rankable else None)


def other_settings(card: dict[str, Any], recipe: Any, method: str) -> str | None:
    """Why the recipe's settings are not those that a model was unlearned by; None where they are."""
    done = card.get("unlearned") or []
    used = done[-1].get("config") if done and method == done[-1].get("method") else None
    return OTHERS if used is not None and used != recipe.config_of(method).digest else None


def attach(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        epilog="Example: curerec evaluate --recommender runs/recommender --unlearned runs/new/recommender "
        "--data ml-100k --request request.csv --retrain runs/retrain1 --retrain runs/retrain2 "
        "--out runs/judged"
    )(evaluate)
