"""What a request's record counts, and what is special about it in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from curerec.requests.commit import Counts
from curerec.requests.gate import Decision
from curerec.requests.stages import RETRAIN
from curerec.requests.table import Table


def counts_of(table: Table, deleted: np.ndarray, absent: int) -> Counts:
    return Counts(
        rows_deleted=int(deleted.sum()),
        training_rows=int((deleted & table.trained).sum()),
        training_targets=int(deleted[table.split.train.target].sum()),
        public_rows=int((deleted & table.public).sum()),
        ids_absent=absent,
    )


def limits_of(
    mine: Counts,
    batch: Counts,
    decision: Decision | None,
    answers: dict[str, dict[str, Any]],
    method: str,
) -> list[str]:
    """What is special about one request; ``batch`` is what was measured."""
    found = []
    if mine["ids_absent"]:
        found.append(
            f"Of {mine['ids_absent']} of its ids no row was left: requests before had deleted them all."
        )
    if mine["public_rows"]:
        found.append(
            f"{mine['public_rows']} of the deleted rows were in the pre-training of the base model, which "
            "keeps what it learnt from them."
        )
    if not answers:
        found.append("No training row was deleted: the fine-tuned weights did not change.")
        return found
    only = mine["training_rows"] - mine["training_targets"]
    if not mine["training_rows"] and method != RETRAIN:
        found.append("None of its rows was in the training; the measurements are of the batch's other rows.")
    elif only > 0 and method != RETRAIN:
        found.append(
            f"{only} of the deleted rows were no training targets, but stood in histories of training "
            "prompts; the measurements do not look at them."
        )
    if mine["training_targets"] < batch["training_targets"]:
        found.append(
            f"The measurements are of the whole batch: {batch['training_targets']} training targets, "
            f"{mine['training_targets']} of them this request's."
        )
    if kept := answers["update"].get("answers_kept"):
        found.append(
            f"The new version keeps what the recommender as trained, which knew the deleted rows, answered "
            f"{kept} training examples that are left (policy `keep_answers`)."
        )
    if method == RETRAIN:
        found.append(
            "The new version was trained without the deleted rows; its membership is not a condition."
        )
    elif decision is not None and answers["verdict"]["verdict"]["verified"] is None:
        found.append("Not every check could be judged; the operator's policy accepts that.")
    return found
