"""What measuring and judging a result will take: a rehearsal on drawn answers, which asks no model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from curerec.evaluation.candidate import Candidate
from curerec.evaluation.scene import Ground
from curerec.judge import judge
from curerec.measure import ground_of, measure
from curerec.opened import Opened, answers_at_hand
from curerec.prompts.encoding import Prompts
from curerec.recommender.stored_answers import StoredAnswers
from curerec.records import Examples, ForgetSplit
from curerec.result import known_to_both
from curerec.workload import Part, Work


@dataclass(frozen=True)
class Rehearsed:
    """What :func:`curerec.result.result_of` would do.

    Attributes:
        work: prompts that are encoded and scored, and the base that is loaded.
        numbers_s: seconds of all that is computed from the answers, bootstraps above all.
    """

    work: list[Work]
    numbers_s: float


def rehearsed(opened: Opened, split: ForgetSplit, method: str) -> Rehearsed:
    """Count the passes that a result will be measured and judged by, and time what is computed from them.

    The measuring itself is run, on answers drawn at random: what it asks for is noted and not asked.

    Args:
        opened: the recommender; left as it is.
        split: the request applied.
        method: that will carry it out, and shows histories as they are.
    """
    start = time.perf_counter()
    ground = _Unasked(**vars(ground_of(opened, split)))
    original, new, base = (Candidate(name) for name in ("original", "new", "base"))
    known_to_both(opened, split, original, base)
    noted = _Noted(opened.recommender.model, opened.data, split.retain, np.zeros((len(split.retain), 2)))
    measure(opened, split, {"original": original, method: new}, {}, ground=ground)
    judge(replace(opened, answered=noted), split, original, new, base, ground=ground)
    seconds = time.perf_counter() - start
    encoded = [Work("encode", len(ground.part(name)), cast(Part, name)) for name in ground.shown]
    of_retain = [
        Work("score", n) for examples, of_base in noted.asked if (n := _unknown(opened, examples, of_base))
    ]
    encoded += [Work("encode", one.n) for one in of_retain]
    return Rehearsed([Work("base"), *encoded, *ground.asked, *of_retain], seconds)


def _unknown(opened: Opened, examples: Examples, of_base: bool) -> int:
    """How many examples the judge asks a model about."""
    kept = answers_at_hand(opened)
    return len(examples) if kept is None else int((~kept.find(examples, base=of_base)[1]).sum())


def _drawn(n: int, *seed: int) -> np.ndarray:
    """Answers of nobody, [n, 2]."""
    return np.random.default_rng(seed).normal(size=(n, 2)).astype(np.float32)


@dataclass(frozen=True)
class _Shown:
    """Prompts of a part that nobody encodes."""

    part: Part
    n: int

    def take(self, index: np.ndarray) -> _Shown:
        return _Shown(self.part, len(index))


@dataclass
class _Unasked(Ground):
    """Notes which prompts a model would have been asked about, and draws the answers."""

    asked: list[Work] = field(default_factory=list)
    shown: dict[str, None] = field(default_factory=dict)

    def prompts(self, name: str) -> Prompts:
        self.shown[name] = None
        return cast(Prompts, _Shown(cast(Part, name), len(self.part(name))))

    def score(self, model: Any, prompts: Any) -> np.ndarray:
        self.asked.append(Work("score", prompts.n, prompts.part))
        return _drawn(prompts.n, len(self.asked))


@dataclass(frozen=True)
class _Noted(StoredAnswers):
    """Knows every answer, and notes what it was asked for: examples, and whether of the base."""

    asked: list[tuple[Examples, bool]] = field(default_factory=list)

    def find(self, examples: Examples, *, base: bool = False) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((examples, base))
        return _drawn(len(examples), len(self.asked), 1), np.ones(len(examples), bool)


__all__ = ["Rehearsed", "rehearsed"]
