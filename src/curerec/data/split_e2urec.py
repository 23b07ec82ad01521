"""The split and the request of E2URec's experiments on MovieLens-1M."""

from __future__ import annotations

import random

import numpy as np

from curerec.data.splits import HISTORY, MIN_HISTORY, examples
from curerec.errors import DataError
from curerec.interactions import Interactions
from curerec.records import ForgetRequest, Split

WINDOW = 100_000  # the latest examples, of which the first 60 % train


def e2urec_split(
    data: Interactions,
    *,
    control_share: float = 0.0,
    window: int = WINDOW,
    seed: int = 0,
    users: np.ndarray | None = None,
    history: int = HISTORY,
) -> Split:
    """The latest examples of all users in time order: 60 % train, 20 % validation, 20 % test.

    Examples with fewer than 5 earlier interactions are dropped, the rest sorted by (time, user, item); of
    their last 20 % the last ``window`` are used.

    Args:
        data: interactions with true times; a global order means nothing where each user's times start at 0.
        control_share: share of the training examples that become the control set D_c. E2URec has none; with
            0 the counts are the published ones and ``control`` is empty, which no method can stop by.
        window: at most so many examples.
        seed: of the control draw.
        users: user codes to take examples from; all when None.
        history: interactions that a prompt shows at most.

    Returns:
        The split, each part in time order.

    Raises:
        DataError: a part would be empty, or the times are but the order of each user's rows.

    Source: justarter/E2URec, data_preprocess/{ml-1m,split_ml-1m}.ipynb; PROTOCOL section 1. With the official
        ml-1m: 970,009 examples, 60,000/20,000/20,000 used, 1,025 training users.

    Related:
        :func:`curerec.data.splits.per_user_split`, the default; :func:`e2urec_request`.
    """
    if np.array_equal(data.time, np.arange(len(data)) - data.first[data.user_code]):
        raise DataError(
            "has no times, by which E2URec's split orders the rows of all users",
            where=data.name,
            mend="Use data with times, or the per-user split (split.kind: per-user)",
        )
    wanted = np.ones(len(data), bool) if users is None else np.isin(data.user_code, users)
    rows = np.flatnonzero(wanted & (np.arange(len(data)) - data.first[data.user_code] >= MIN_HISTORY))
    # Rows are sorted by (user, time, item), so a stable sort by time leaves (time, user, item).
    rows = rows[np.argsort(data.time[rows], kind="stable")]
    rows = rows[int(0.8 * len(rows)) :][-window:]
    train, valid, test = np.split(rows, [int(0.6 * len(rows)), int(0.8 * len(rows))])
    control = np.random.default_rng([seed, 13]).random(len(train)) < control_share
    for role, part in (("train", train[~control]), ("valid", valid), ("test", test)):
        if len(part) == 0:
            raise DataError(
                f"the {role} part of the split is empty: only {len(rows)} late examples have enough history",
                where=data.name,
                mend="Use the per-user split for data this small",
            )
    return Split(
        train=examples(data, train[~control], history=history),
        control=examples(data, train[control], history=history),
        valid=examples(data, valid, history=history),
        test=examples(data, test, history=history),
        kind="e2urec",
        seed=seed,
    )


def e2urec_request(data: Interactions, split: Split, *, share: float = 0.2, seed: int = 42) -> ForgetRequest:
    """The users that E2URec forgets: the first ``share`` of the training users, shuffled by Python.

    Args:
        data: the interactions.
        split: from :func:`e2urec_split`; users count in the order of their first training example.
        share: of the training users, rounded down.
        seed: of :class:`random.Random`; 42 in the source.

    Source: justarter/E2URec, data_preprocess/split_ml-1m.ipynb (205 users, 12,982 examples of D_f).
    """
    users = list(dict.fromkeys(data.user_code[split.train.target].tolist()))
    random.Random(seed).shuffle(users)
    return ForgetRequest("users", tuple(data.users[users[: int(share * len(users))]].tolist()))
