"""Which examples a recipe's recommender is trained and judged on."""

from __future__ import annotations

import numpy as np

from curerec.data.splits import LIKED, per_user_split, subsample
from curerec.errors import DataError
from curerec.recipe import SplitConfig
from curerec.records import Interactions, Split


def users_by_part(data: Interactions, config: SplitConfig) -> tuple[np.ndarray, np.ndarray]:
    """User codes of the public part (the base's pre-training) and of the recommender's own part."""
    order = np.random.default_rng([config.seed, 91]).permutation(len(data.users))
    n = round(config.public_share * len(order))
    return np.sort(order[:n]), np.sort(order[n:])


def split_of(data: Interactions, config: SplitConfig) -> Split:
    """The recommender's split, the same whenever it is asked for with the same data and configuration.

    Raises:
        DataError: histories are too short for one, or everything in a part was liked, or nothing.
    """
    _, own = users_by_part(data, config)
    whole = per_user_split(
        data,
        seed=config.seed,
        control_share=config.control_share,
        holdout_share=config.holdout_share,
        users=own,
    )
    split = subsample(whole, train=config.train, other=config.other, seed=config.seed)
    for role in ("train", "valid", "test"):
        if len(np.unique(getattr(split, role).label)) < 2:
            raise DataError(
                f"all ratings of the {role} part are on one side of {LIKED:g}: nothing to tell apart",
                where=data.name,
                mend="Use more data, or ratings on a scale of five with liked and disliked items",
            )
    return split
