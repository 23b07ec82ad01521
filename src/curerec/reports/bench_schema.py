"""The summary of a benchmark: what `summary.json` holds and `bench.html` is rendered from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from curerec.errors import DataError
from curerec.reports.parts import Number, Part, Text

SCHEMA = "curerec-bench/1"


class Interval(Part):
    """Mean over ``n`` seeds and half-width of its 95 % interval (none with one seed)."""

    mean: float
    half: Number = None
    n: int


class Failure(Part):
    """A cell that came to nothing, and why."""

    seed: int
    text: str


class Against(Part):
    """Our method's residual, or its excess, less this one's: paired, over seeds.

    Attributes:
        by: ``examples``: the error is no smaller than that of resampled examples; ``rows``: of seeds alone.
    """

    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    seeds: int
    significant: bool
    by: str = "examples"


class Verdicts(Part):
    """What `curerec evaluate --verdict` says of the models of a line.

    Attributes:
        verified, refused, of: models that every check passed, that one failed, and all; the rest could not
            be judged.
        by: how many models each check refused, most first.
    """

    verified: int
    refused: int
    of: int
    by: dict[str, int] = Field(default_factory=dict)


class Line(Part):
    """One model or method of a block.

    Attributes:
        name: ``original``, ``retrain`` or a method.
        values: by column; None where no seed has one. A reason why a seed has none is in ``missing``.
        seeds: that ran; ``wanted`` is how many the recipe asks for.
        fewer: fewer seeds than the block's fullest line is to have.
        models: that were averaged: the retrains of a seed count each.
    """

    name: str
    values: dict[str, Interval | None]
    seeds: list[int]
    wanted: int
    fewer: bool
    models: int
    failures: list[Failure] = Field(default_factory=list)
    missing: dict[str, str] = Field(default_factory=dict)
    verdicts: Verdicts | None = None
    against: Against | None = None
    against_excess: Against | None = None

    def mean(self, column: str) -> Number:
        """The mean of a column; None where there is none."""
        found = self.values.get(column)
        return found.mean if found else None


class Block(Part):
    """A data set, a model and a request.

    Attributes:
        floor, ceiling: between retrains, and from the original to them, nats.
        rankable: whether the ceiling is at least twice the floor; None where nothing was measured.
    """

    dataset: str
    model: str
    request: str
    title: str
    forget_kind: str
    forget_ratio: float
    parts: int
    floor: Interval | None = None
    ceiling: Interval | None = None
    rankable: bool | None = None
    lines: list[Line]
    n_forget: Interval | None = None


class SearchEnd(Part):
    """A chosen number that is the largest or smallest on offer."""

    method: str
    key: str
    value: float


class Search(Part):
    """How settings were chosen.

    Attributes:
        calibration: of the answers on validation data, too; not by searches of before 2026-11-29.
        ends: what was chosen at an end of its grid.
    """

    seed: int
    trials: int
    tolerance: float
    target: Literal["base", "expected"] = "base"
    run: int
    failed: int
    calibration: bool = False
    ends: list[SearchEnd] = Field(default_factory=list)


class Bench(Part):
    """A benchmark's table."""

    schema_version: Literal["curerec-bench/1"] = Field(alias="schema")
    name: str
    costs_only: bool = False
    seeds: list[int]
    retrains: int
    blocks: list[Block]
    left_out: int = 0
    versions: dict[str, Any] = Field(default_factory=dict)
    devices: list[str] = Field(default_factory=list)
    shared_machine: bool = False
    sources: list[str] = Field(default_factory=list)
    data: dict[str, str] = Field(default_factory=dict)
    newest: Text = None
    search: Search | None = None


def as_bench(values: Bench | Mapping[str, Any]) -> Bench:
    """A summary, checked.

    Raises:
        DataError: the mapping is none, naming the key.
    """
    if isinstance(values, Bench):
        return values
    try:
        return Bench.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        mend = "Make it anew with `curerec bench --table`"
        raise DataError(f"is no summary of a benchmark ({where}: {first['msg']})", mend=mend) from None
