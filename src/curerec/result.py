"""What a request came to: its result measured and judged beside the original, by few passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from curerec.evaluation.candidate import Candidate
from curerec.judge import judge
from curerec.measure import Measured, candidate, measure
from curerec.opened import Opened, answers_at_hand, base_model
from curerec.records import Examples, ForgetSplit, Outcome

STAGE = "measure"  # as reporters are told of it


@dataclass(frozen=True)
class Result:
    """A request's result.

    Attributes:
        original, new: the recommender before and after, with what they answered.
        measured: metrics of both.
        verdict: of :func:`curerec.judge.judge`.
    """

    original: Candidate
    new: Candidate
    measured: Measured
    verdict: dict[str, Any]


def result_of(opened: Opened, split: ForgetSplit, outcome: Outcome, method: str, *, seed: int = 0) -> Result:
    """Measure and judge what a method made, where there is no retrain to hold it against.

    Args:
        opened: the recommender before.
        split: the request applied.
        outcome: of the method.
        method: its name.
        seed: of what a base lacks when it is loaded.
    """
    original, base = original_and_base(opened, split, seed=seed)
    new = candidate(outcome)
    measured = measure(opened, split, {"original": original, method: new}, {})
    return Result(original, new, measured, judge(opened, split, original, new, base))


def original_and_base(opened: Opened, split: ForgetSplit, *, seed: int = 0) -> tuple[Candidate, Candidate]:
    """The recommender before a request and its base, with what training kept of their answers on D_f and D_c.

    For who has just carried the request out: files beside a recommender are its keeper's word. Who judges
    another's work, as ``curerec evaluate`` does, asks the weights.

    Args:
        opened, split, seed: as for :func:`result_of`.
    """
    original, base = Candidate(opened.recommender.model), Candidate(base_model(opened, seed=seed))
    known_to_both(opened, split, original, base)
    return original, base


def known_to_both(opened: Opened, split: ForgetSplit, original: Candidate, base: Candidate) -> None:
    """Give the recommender before a request and its base what training kept of their answers.

    Args:
        opened, split: as for :func:`result_of`.
        original, base: the two, of which nothing is known yet.
    """
    for one, of_base in ((original, False), (base, True)):
        for part in ("forget", "control"):
            known = known_answers(opened, getattr(split, part), base=of_base)
            if known is not None:
                one.known[part] = known


def known_answers(opened: Opened, examples: Examples, *, base: bool = False) -> np.ndarray | None:
    """What training kept of the answers to examples, to be held against answers of now.

    Args:
        opened: the recommender.
        examples: asked for, [n].
        base: the answers of the model before fine-tuning.

    Returns:
        float32 [n, 2], NaN where nothing is known; None where that is all, and where numbers are of half
        precision: there another batch changes an answer by more than the verdict takes for no change.
    """
    kept = answers_at_hand(opened)
    if kept is None or not _exact(opened.recommender.model):
        return None
    logits, found = kept.find(examples, base=base)
    if not found.any():
        return None
    logits[~found] = np.nan
    return logits


def _exact(model: Any) -> bool:
    """Whether all weights are of at least float32."""
    return all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())


__all__ = ["STAGE", "Result", "known_answers", "known_to_both", "original_and_base", "result_of"]
