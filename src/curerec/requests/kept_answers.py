"""What the recommender as trained answered, handed on from version to version where the policy says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from curerec.models import logits_of
from curerec.opened import Opened
from curerec.recommender.stored_answers import StoredAnswers
from curerec.records import Examples
from curerec.requests.stages import RETRAIN, Job


def trained_last(card: Mapping[str, Any]) -> bool:
    """Whether nothing was unlearned since a recommender was trained or retrained.

    Args:
        card: of the recommender.

    Example:
        >>> trained_last({}), trained_last({"unlearned": [{"method": "retrain"}]})
        (True, True)
        >>> trained_last({"unlearned": [{"method": "retrain"}, {"method": "cure"}]})
        False
    """
    steps = card.get("unlearned") or [{"method": RETRAIN}]
    return bool(steps[-1]["method"] == RETRAIN)


def handed_on(job: Job, opened: Opened, retain: Examples) -> StoredAnswers | None:
    """The answers for the next version: of examples that are just as they were in training, NaN for others.

    Args:
        job: the batch; by its policy nothing is handed on, or what there is. A retrain ends it.
        opened: the version in force.
        retain: its training examples that are left, with rows of the table before.

    Returns:
        None where the policy says so, and where nobody knows what the recommender as trained answered: this
        version is an unlearned one with which nothing was kept.

    Source: this project's own (docs/experiments.md, "Requests in a row").
    """
    if not job.keep_answers or job.method == RETRAIN:  # a retrain is a recommender as trained itself
        return None
    if (known := opened.as_trained or opened.answered) is not None:
        logits, found = known.find(retain)
        logits[~found] = np.nan
    elif trained_last(opened.recommender.card):
        logits = logits_of(opened.recommender, opened.data, retain)
    else:
        return None
    # Without the deleted rows all others have other numbers.
    after = job.table.of(job.table.without(job.deleted, job.items)) if job.deleted.any() else job.table
    moved = replace(retain, target=(np.cumsum(~job.deleted) - 1)[retain.target])
    answers = StoredAnswers.of(opened.recommender.model, after.data, moved, logits)
    train = after.split.train.take(np.argsort(after.split.train.target, kind="stable"))
    if not np.array_equal(answers.examples.target, train.target):
        return None
    return replace(answers, examples=train)  # with histories by the new numbers
