"""A request as the search sees it: no test example, not even its rating, and no retrained model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from curerec.interactions import Interactions
from curerec.methods import Task
from curerec.opened import Opened
from curerec.pipeline import task_for
from curerec.records import ForgetRequest, Split
from curerec.splitting import granted


def blinded(data: Interactions, split: Split) -> Interactions:
    """The interactions with the rating of every test target gone (nan) that no other prompt shows.

    Test targets are each user's latest interactions, or the latest of all, so no history of another part
    holds one, but for equal times.

    Args:
        data: the interactions.
        split: its test targets are hidden.
    """
    parts = (split.train, split.control, split.valid)
    shown = np.unique(np.concatenate([np.r_[p.target, p.history[p.history >= 0].ravel()] for p in parts]))
    rating = data.rating.copy()
    rating[np.setdiff1d(split.test.target, shown)] = np.nan
    at = data.ratings.schema.get_field_index("rating")
    return replace(data, ratings=data.ratings.set_column(at, "rating", pa.array(rating)))


def blind_task(opened: Opened, request: ForgetRequest, *, seed: int) -> Task:
    """The request as a trial is given it: D_f, D_r, D_c and D_v of data without test ratings.

    Args:
        opened: the development seed's original.
        request: of the development seed.
        seed: of the method.

    Source: PROTOCOL section 3: no choice by D_t or a retrain.
    """
    split = granted(opened.data, opened.recipe, opened.split, request)
    return task_for(replace(opened, data=blinded(opened.data, opened.split)), split, seed=seed)
