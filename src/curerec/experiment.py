"""One request measured against retraining: what the demo shows and the benchmarks repeat over seeds."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from curerec.data.request_file import write_request
from curerec.evaluation.cost import Meter
from curerec.interactions import Interactions
from curerec.judge import judge
from curerec.measure import Candidate, candidate, measure
from curerec.methods.retrain import retrain
from curerec.opened import open_recommender
from curerec.pipeline import save_unlearned, task_for, train, unlearn
from curerec.progress import Clock, Reporter, Silent
from curerec.recipe import Recipe
from curerec.recommender.storage import read_card
from curerec.recording import record_of
from curerec.records import ForgetRequest
from curerec.reports.html import write_report
from curerec.reports.schema import retrain_names, write_record
from curerec.splitting import drawn_request, granted

RETRAIN_SEEDS = 1000  # seeds of retrains start here, so that none repeats the original's


def run_experiment(
    data: Interactions,
    recipe: Recipe,
    out: Path,
    *,
    retrains: int = 2,
    rivals: tuple[str, ...] = ("npo", "random_modules"),
    request: ForgetRequest | None = None,
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train, forget by every method, retrain, measure, and write record and report.

    Args:
        data: interactions.
        recipe: everything that is to be known of the run.
        out: folder; gets ``original``, ``cure``, ``request.csv``, ``record.json`` and ``report.html``.
        retrains: reference models, >= 2 for a noise floor.
        rivals: methods beside ``cure``.
        request: what to delete; None draws one by the recipe.
        cache: of the user.
        reporter: told of stages.

    Returns:
        The record.
    """
    reporter = reporter or Silent()
    out.mkdir(parents=True, exist_ok=True)
    train(data, recipe, out / "original", cache=cache, clock=Clock(reporter))
    opened = open_recommender(out / "original", data, cache=cache)
    ask = recipe.request
    chosen = None if request is not None else ask.choice
    request = request or drawn_request(data, recipe, opened.split)
    write_request(request, out / "request.csv")
    split = granted(data, recipe, opened.split, request)
    models = {"original": Candidate(opened.recommender.model)}
    outcomes = {}
    for method in ("cure", *rivals):
        told = _Named(reporter, method)
        with Meter() as meter:
            outcomes[method], _ = unlearn(
                opened, request, method, recipe.config_of(method), seed=recipe.seed, reporter=told
            )
        models[method] = candidate(outcomes[method], meter)
    save_unlearned(opened, outcomes["cure"], request, out / "cure", config=recipe.config_of("cure"))
    references = {}
    for k, name in enumerate(islice(retrain_names(), retrains)):
        task = task_for(
            opened, split, seed=RETRAIN_SEEDS * (k + 1) + recipe.seed, clock=Clock(_Named(reporter, name))
        )
        with Meter() as meter:
            outcome = retrain(task)
        references[name] = candidate(outcome, meter)
    with Clock(reporter).stage("measure"):
        measured = measure(opened, split, models, references)
        base = task_for(opened, split, seed=recipe.seed).base_model()
        verdict = judge(opened, split, models["original"], models["cure"], Candidate(base))
        record = record_of(
            opened,
            request,
            split,
            measured,
            outcomes["cure"],
            method="cure",
            config=recipe,
            seed=recipe.seed,
            choice=chosen,
            verdict_part=verdict,
            output=read_card(out / "cure")["weights_sha256"],
        )
    # The original's cost is its training; a reader compares the request's with a retrain's.
    record["metrics"]["original"]["t_total_s"] = opened.recommender.card["train_time_s"]
    write_record(record, out / "record.json")
    write_report(record, out / "report.html")
    return record


class _Named:
    """A reporter that says which method a stage belongs to."""

    def __init__(self, inner: Reporter, name: str) -> None:
        self.inner, self.name = inner, name

    def stage(self, name: str) -> Any:
        return self.inner.stage(self.name if name == self.name else f"{self.name}: {name}")
