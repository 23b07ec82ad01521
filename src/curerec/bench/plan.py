"""What a benchmark has to do, as jobs that wait for each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from curerec.bench.recipe import Ask, BenchRecipe
from curerec.bench.search import candidates, grid_of
from curerec.methods import METHODS
from curerec.recipe import SETTINGS

Kind = Literal["base", "original", "retrain", "yardstick", "trial", "cell"]
Place = tuple[str, str, int, str]  # dataset, model, seed, request
FAR = 2  # nothing in common
#: How points are drawn and trials judged; goes up with what would choose otherwise.
JUDGED = 3


@dataclass(frozen=True)
class Job:
    """One thing for a worker to do.

    Attributes:
        kind: ``base`` (pre-training), ``original``, ``retrain`` (a reference), ``yardstick`` (originals and
            references measured), ``trial`` (one setting of a method on the development seed), ``cell`` (a
            method on a request).
        dataset, model: names in the bench recipe.
        seed: of the original, the request and the method.
        ask: the request.
        method: of a trial or a cell.
        number: of the reference or the trial, from 0.
        needs: keys of the jobs that must be settled first.
    """

    kind: Kind
    dataset: str
    model: str
    seed: int = 0
    ask: Ask | None = None
    method: str = ""
    number: int = 0
    needs: tuple[str, ...] = field(default=(), compare=False)

    @property
    def request(self) -> str:
        """Key of the request as a whole: a sequence has the references of the same request in one piece."""
        return self.ask.whole.key if self.ask else ""

    @property
    def place(self) -> Place:
        """What a worker has to have opened for it; a training needs nothing of the request's yardstick."""
        measures = self.kind in ("yardstick", "cell", "trial")
        return self.dataset, self.model, self.seed, self.request if measures else ""

    @property
    def trains(self) -> bool:
        """Whether it makes a model that other jobs share, and finds it where it was made before."""
        return self.kind in ("base", "original", "retrain")

    @property
    def key(self) -> str:
        """Names the job within its run."""
        asked = self.ask.key if self.ask else ""
        parts = (self.kind, self.dataset, self.model, self.seed, asked, self.method, self.number)
        return "|".join(map(str, parts))

    @property
    def label(self) -> str:
        """For a line of progress."""
        what = {"retrain": f"retrain {self.number + 1}", "trial": f"{self.method}, trial {self.number + 1}"}
        named = what.get(self.kind, self.method or self.kind)
        asked = f", {title_of(self.ask)}" if self.ask else ""
        return f"{self.dataset}, {self.model}, seed {self.seed}{asked}: {named}"


def nearness(place: Place, opened: Sequence[Place | None]) -> int:
    """How much of what a place needs is among what was opened: 0 all, 1 its recommender, 2 nothing.

    Example:
        >>> nearness(("a", "m", 1, "x"), [("a", "m", 1, ""), None]), nearness(("a", "m", 1, "x"), [])
        (1, 2)
    """
    return min((0 if one == place else 1 for one in opened if one and one[:3] == place[:3]), default=FAR)


def title_of(ask: Ask) -> str:
    """A request in words.

    Example:
        >>> title_of(Ask(share=0.1)), title_of(Ask(share=0.1, parts=10))
        ('users 10 %', 'users 10 x 1 %')
    """
    choice = "" if ask.choice == "random" else f" ({ask.choice})"
    if ask.parts > 1:
        kept = ", answers as trained kept" if ask.as_trained else ""
        return f"{ask.kind} {ask.parts} x {100 * ask.share / ask.parts:g} %{choice}{kept}"
    return f"{ask.kind} {100 * ask.share:g} %{choice}"


def is_searched(recipe: BenchRecipe, method: str) -> bool:
    """Whether a method's settings are found by trials."""
    return recipe.search is not None and method in METHODS and bool(grid_of(recipe, method))


def config_hash(recipe: BenchRecipe, job: Job, method: str | None = None) -> str:
    """sha256 of all that a row or a trial depends on but its seed: seeds of one configuration share it.

    Settings of other methods are not in it, so that one method can be changed without running all again.

    Args:
        recipe: of the run.
        job: a cell, a trial or a yardstick.
        method: of the row, where it is not the job's (``original``, ``base``, ``retrain``).
    """
    assert job.ask is not None
    method = method or job.method
    setting = recipe.setting(job.dataset, job.model, ask=job.ask)
    config = setting.config_of(method) if method in METHODS else None
    about = {
        "setting": setting.model_dump(mode="json", exclude={*SETTINGS, "seed"}),
        "shape": recipe.models[job.model].shape,
        "parts": job.ask.parts,
        "method": method,
        "config": config.model_dump(mode="json") if config is not None else None,
        "search": None
        if recipe.search is None or not is_searched(recipe, method)
        else {
            **recipe.search.model_dump(mode="json", include={"seed", "trials", "tolerance", "target"}),
            "on": recipe.searched_on(job.dataset),
            "grid": grid_of(recipe, method),
        },
        "costs_only": recipe.costs_only,
    }
    if job.kind == "trial":  # judged without references, and by no column
        about |= {"judged": JUDGED}
    else:
        about |= {"retrains": recipe.retrains, "columns": sorted(recipe.columns)}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def tries_of(recipe: BenchRecipe, dataset: str, model: str, method: str) -> list[dict[str, Any]]:
    """The settings that a method is tried with; the first request of the recipe is what it is tried on."""
    assert recipe.search is not None
    config = recipe.setting(dataset, model, ask=recipe.requests[0]).config_of(method)
    return candidates(config, grid_of(recipe, method), recipe.search.trials)


def plan(recipe: BenchRecipe) -> list[Job]:
    """All jobs, in the order in which they should be done; each once, whoever needs it."""
    jobs: dict[str, Job] = {}

    def add(job: Job) -> str:
        jobs.setdefault(job.key, job)
        return job.key

    def original(dataset: str, model: str, seed: int) -> str:
        base = add(Job("base", dataset, model, seed))
        return add(Job("original", dataset, model, seed, needs=(base,)))

    for ask in recipe.requests:
        for seed in recipe.seeds_of(ask):
            for dataset, model in recipe.places_of(ask):
                first, whole = original(dataset, model, seed), ask.whole
                references = [
                    add(Job("retrain", dataset, model, seed, whole, number=k, needs=(first,)))
                    for k in range(recipe.retrains)
                ]
                yard = add(Job("yardstick", dataset, model, seed, whole, needs=(first, *references)))
                for method in ask.chosen:
                    needs = [yard]
                    if recipe.search is not None and is_searched(recipe, method):
                        on, dev = recipe.searched_on(dataset), recipe.search.seed
                        start = original(on, model, dev)
                        asked = recipe.requests[0].whole
                        needs += [
                            add(Job("trial", on, model, dev, asked, method, n, needs=(start,)))
                            for n in range(len(tries_of(recipe, on, model, method)))
                        ]
                    add(Job("cell", dataset, model, seed, ask, method, needs=tuple(needs)))
    return list(jobs.values())
