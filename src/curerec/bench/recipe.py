"""What a benchmark runs: one YAML file, resolved into a recipe for every data set and model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from curerec.bench.shapes import SHAPES
from curerec.config import MAX_SEED, Strict, merged, parse, read_yaml
from curerec.errors import ConfigError
from curerec.evaluation import METRICS
from curerec.methods import CONTROLS, METHODS, SHIPPED
from curerec.recipe import Recipe, RequestConfig
from curerec.recipes import load_recipe
from curerec.recipes import names as recipe_names
from curerec.reports.schema import retrain_names

#: The control of equal size that each circuit method is never shown without.
TWINS = {"cure": "random_modules"}
#: Every method but the reference.
RIVALS = tuple(name for name in METHODS if name != "retrain")


class Ask(Strict):
    """One kind of request, and which methods answer it."""

    kind: Literal["users", "items", "interactions"] = "users"
    share: float = Field(0.1, gt=0, lt=1, description="of the users, items or interactions trained on")
    choice: Literal["random", "core", "edge", "e2urec"] = "random"
    parts: int = Field(
        1, gt=0, description="the same request in so many parts, one after the other: a sequence"
    )
    as_trained: bool = Field(
        False,
        description="of a sequence: what the recommender as trained answered is kept through it, and updates "
        "hold their retain side to that (cure, its twin, npo and the rules in its loop, bad_teacher, scrub, "
        "cau, e2urec)",
    )
    methods: list[str] = Field(["all"], description="names, `all`, or `-name` to leave one out")
    seeds: int | None = Field(None, gt=0, description="only the first so many seeds")
    datasets: list[str] | None = Field(None, description="only these; none: all")
    models: list[str] | None = Field(None, description="only these; none: all")

    @property
    def key(self) -> str:
        """Names the request, whatever methods answer it.

        Example:
            >>> Ask(share=0.1, parts=10).key
            'users-0.1-random-x10'
        """
        parts = f"-x{self.parts}" if self.parts > 1 else ""
        return f"{self.kind}-{self.share:g}-{self.choice}{parts}" + ("-kept" if self.as_trained else "")

    @property
    def whole(self) -> Ask:
        """The same request in one piece, whoever answers it: what references are trained for."""
        return Ask(kind=self.kind, share=self.share, choice=self.choice)

    @cached_property
    def chosen(self) -> tuple[str, ...]:
        """Names of the methods, in the order of :data:`curerec.methods.METHODS`."""
        out = {m[1:] for m in self.methods if m.startswith("-")}
        named = {m for m in self.methods if not m.startswith("-")}
        everything = "all" in named or not named
        wanted = named.union(SHIPPED) if everything else named
        return tuple(m for m in RIVALS if m in wanted and m not in out)

    @model_validator(mode="after")
    def _known(self) -> Ask:
        unknown = sorted({m.removeprefix("-") for m in self.methods} - {*RIVALS, "all"})
        if unknown:
            raise ValueError(f"no method {', '.join(unknown)}")
        for method, twin in TWINS.items():
            if method in self.chosen and twin not in self.chosen:
                raise ValueError(f"{method} needs its twin of equal size, {twin}, beside it")
        if self.as_trained and self.parts == 1:
            raise ValueError("as_trained is of a sequence: parts has to be above 1")
        RequestConfig(kind=self.kind, share=self.share, choice=self.choice)
        return self


class SearchConfig(Strict):
    """The search for settings: so many trials a method, on D_f, D_c and D_v of a development seed."""

    added = ("target",)

    seed: int = Field(0, ge=0, le=MAX_SEED, description="of development; none that is reported")
    trials: int = Field(3, gt=0, description="settings tried for each method, the recipe's own first")
    tolerance: float = Field(
        0.01, ge=0, description="membership AUC from the target within which the gap counts as closed"
    )
    target: Literal["expected"] | None = Field(
        None, description="membership AUC to reach; expected: methods/expected.py; none: the base model's"
    )
    datasets: list[str] | None = Field(
        None, description="searched on these; the others take the choice of the first. None: all"
    )
    grids: dict[str, dict[str, Annotated[list[Any], Field(min_length=1)]]] = Field(
        {}, description="values by (dotted) key, by method; none: the method's own grid"
    )


class ModelEntry(Strict):
    """A model: a recipe, and what is changed of it."""

    added = ("resolved", "defaults")

    recipe: str = Field("demo", description="name, or file as seen from this one")
    change: dict[str, Any] = Field({}, description="keys of the recipe to replace")
    every_method: dict[str, Any] = Field(
        {},
        description="settings given to every method that has them, such as check_size, but to cure and its "
        "twin; what the recipe's methods says of one goes before",
    )
    shape: str | None = Field(
        None, description="random weights of this shape stand in for model.base; only costs mean anything"
    )

    resolved: dict[str, Any] | None = Field(
        None,
        description="the recipe as it stood when the run began, kept in bench.json: a recipe that changes "
        "later does not change what the rows are of",
    )
    defaults: dict[str, dict[str, Any]] | None = Field(
        None, description="the methods' own settings as they stood then, which may change later, too"
    )

    @model_validator(mode="after")
    def _shape(self) -> ModelEntry:
        if self.shape is not None and self.shape not in SHAPES:
            raise ValueError(f"no shape {self.shape}: choose from {', '.join(SHAPES)}")
        return self


class BenchRecipe(Strict):
    """Data sets x models x requests x seeds x methods."""

    name: str
    datasets: dict[str, dict[str, Any]] = Field(
        ..., min_length=1, description="name -> keys of the recipe to replace; `data` where the name differs"
    )
    models: dict[str, ModelEntry] = Field(..., min_length=1)
    requests: list[Ask] = Field(..., min_length=1, description="most important first: that order is run")
    seeds: list[Annotated[int, Field(ge=0, le=MAX_SEED)]] = Field(..., min_length=1)
    retrains: int = Field(
        3, gt=0, description="reference models a request; two give a floor, of one pair: provisional"
    )
    search: SearchConfig | None = None
    costs_only: bool = Field(False, description="report time and memory, not what random weights answer")
    columns: list[str] = Field(
        [], description="metrics beyond those of the answers, by name: relearn_ratio, residual_int8, ..."
    )
    _settings: dict[str, Recipe] = PrivateAttr(default_factory=dict)
    draws: int = Field(5000, gt=0, description="resamples of the significance test")

    @model_validator(mode="after")
    def _fits(self) -> BenchRecipe:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed is named twice")
        if self.search is not None and self.search.seed in self.seeds:
            raise ValueError("the seed that settings are searched on must not be reported on")
        if self.retrains < 2 and not self.costs_only:
            raise ValueError("two retrains at least: one gives no floor")
        strange = sorted(set(self.columns) - set(METRICS))
        if strange:
            raise ValueError(f"no metric {', '.join(strange)}")
        if any(m.shape for m in self.models.values()) and not self.costs_only:
            raise ValueError("random weights of a shape need costs_only")
        known: dict[str, Mapping[str, Any]] = {"datasets": self.datasets, "models": self.models}
        for ask in self.requests:
            for part, names in known.items():
                strange = sorted(set(getattr(ask, part) or []) - set(names))
                if strange:
                    raise ValueError(f"a request names {part} that are not there: {', '.join(strange)}")
        if self.search is not None:
            strange = sorted(set(self.search.datasets or []) - set(self.datasets))
            strange += sorted(set(self.search.grids) - set(METHODS))
            if strange:
                raise ValueError(f"search names what is not there: {', '.join(strange)}")
        return self

    @property
    def references(self) -> list[str]:
        """Names of the retrains of a request."""
        return list(islice(retrain_names(), self.retrains))

    @property
    def measured_once(self) -> list[str]:
        """Names of the rows that all cells of a request share.

        Among them is the base model: what fine-tuning was worth on the test set stands beside what
        unlearning cost there. Random weights answer nothing, so a recipe of costs has no row of it.
        """
        return ["original", *([] if self.costs_only else ["base"]), *self.references]

    def as_it_stands(self) -> BenchRecipe:
        """The same with every model's recipe, and every method's own settings and grid, written out.

        Raises:
            ConfigError: a recipe that is named is not there, or does not fit.
        """
        asked = {method for ask in self.requests for method in ask.chosen}
        kinds = {name: METHODS[name][1] for name in sorted(asked - {"cure", "npo", "ga_kl", *CONTROLS})}
        own = {name: kind().model_dump(mode="json") for name, kind in kinds.items() if kind is not None}
        models = {
            name: entry.model_copy(
                update={
                    "resolved": entry.resolved or load_recipe(entry.recipe).model_dump(mode="json"),
                    "defaults": own | (entry.defaults or {}),
                }
            )
            for name, entry in self.models.items()
        }
        search = self.search
        if search is not None:
            from curerec.bench.search import grid_of  # which takes recipes apart

            grids = {method: grid_of(self, method) for method in sorted(asked)}
            search = search.model_copy(update={"grids": grids | search.grids})
        return self.model_copy(update={"models": models, "search": search})

    def setting(self, dataset: str, model: str, *, ask: Ask | None = None, seed: int = 0) -> Recipe:
        """The recipe of a data set and a model, with a request and a seed in it.

        A seed draws everything: the split, with it the users that the base model is pre-trained on, the
        request, the order of training. Seeds that share a base or a test set would scatter less than what
        they are to show.

        Raises:
            ConfigError: a changed key is none of the recipe's, or a value does not fit.
        """
        key = f"{dataset}|{model}|{ask.key if ask else ''}"
        if key not in self._settings:
            self._settings[key] = self._setting(dataset, model, ask)
        return self._settings[key].seeded(seed)

    def _setting(self, dataset: str, model: str, ask: Ask | None) -> Recipe:
        entry = self.models[model]
        where = f"bench recipe {self.name}, {dataset} with {model}"
        values = entry.resolved or load_recipe(entry.recipe).model_dump(mode="json")
        for change in (entry.change, {"data": dataset}, self.datasets[dataset]):
            values = merged(values, change)
        if ask is not None:
            values["request"] = {"kind": ask.kind, "share": ask.share, "choice": ask.choice}
        for name, (_, kind) in METHODS.items():
            fields = {} if kind is None else kind.model_fields
            own = {k: v for k, v in entry.every_method.items() if k in fields}
            own = {**(entry.defaults or {}).get(name, {}), **own}
            if name in ("cure", *CONTROLS) or not own:
                continue
            if name in ("npo", "ga_kl"):
                values["npo"] = {**values["npo"], **own}
            else:
                values["methods"] = {
                    **values["methods"],
                    name: merged(own, values["methods"].get(name, {})),
                }
        return parse(Recipe, values, where=where)

    def seeds_of(self, ask: Ask) -> list[int]:
        """Seeds that a request is run with."""
        return self.seeds[: ask.seeds]

    def places_of(self, ask: Ask) -> list[tuple[str, str]]:
        """(data set, model) pairs that a request is run on."""
        return [
            (d, m)
            for d in self.datasets
            for m in self.models
            if d in (ask.datasets or self.datasets) and m in (ask.models or self.models)
        ]

    def searched_on(self, dataset: str) -> str:
        """The data set whose search decides for this one."""
        wanted = (self.search and self.search.datasets) or list(self.datasets)
        return dataset if dataset in wanted else wanted[0]


def bench_names() -> list[str]:
    """Names of the bench recipes that ship."""
    folder = files("curerec.recipes").joinpath("bench")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_bench(name_or_path: str) -> BenchRecipe:
    """A bench recipe by name (``nano``, ``paper``, ``scale``) or from a YAML file, every setting checked.

    Raises:
        ConfigError: no such recipe, or a file that does not fit.
    """
    if name_or_path in bench_names():
        path = Path(str(files("curerec.recipes").joinpath(f"bench/{name_or_path}.yaml")))
    elif Path(name_or_path).exists():
        path = Path(name_or_path)
    else:
        mend = f"Choose from {', '.join(bench_names())}"
        raise ConfigError("is neither a file nor a bench recipe that ships", where=name_or_path, mend=mend)
    found = _with_files(read_yaml(BenchRecipe, path), path.parent)
    settings = {
        key
        for name, (_, kind) in METHODS.items()
        if kind and name not in ("cure", *CONTROLS)
        for key in kind.model_fields
    }
    for name, entry in found.models.items():
        if strange := sorted(set(entry.every_method) - settings):  # it would be passed over without a word
            mend = "Give settings of methods by their own names, such as check_size or max_steps"
            where = f"{path}, models.{name}.every_method"
            raise ConfigError(f"no method has {', '.join(strange)}", where=where, mend=mend)
    for ask in found.requests:
        for dataset, model in found.places_of(ask):
            setting = found.setting(dataset, model, ask=ask)
            for method in ask.chosen:
                setting.config_of(method)
    return found


def _with_files(found: BenchRecipe, folder: Path) -> BenchRecipe:
    """The same with the recipes that are files, as seen from a folder, read."""
    models = {
        name: entry
        if entry.resolved is not None or entry.recipe in recipe_names()
        else entry.model_copy(
            update={"resolved": load_recipe(entry.recipe, beside=folder).model_dump(mode="json")}
        )
        for name, entry in found.models.items()
    }
    return found.model_copy(update={"models": models})
