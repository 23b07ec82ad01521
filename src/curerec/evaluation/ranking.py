"""Ranking use: where the liked item stands among sampled negatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation.bootstrap import mean_interval
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.inputs import MEND, margin, numbers
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Ground, Scene
from curerec.prompts.encoding import Queries, queries

LENGTH, NEGATIVES = 10, 99
Gain = Callable[[np.ndarray], np.ndarray]


def _discounted(rank: np.ndarray) -> np.ndarray:
    return 1 / np.log2(rank + 1)


def ndcg(scores: np.ndarray, k: int = 10) -> float:
    """NDCG@k with one relevant item a user: ``mean [rank <= k] / log2(rank + 1)``.

    Args:
        scores: [users, items], the positive in the first column.
        k: length of the list.

    Returns:
        In [0, 1]. Ties count as the mean over their orders, so a constant model scores as chance does.

    Raises:
        ConfigError: no users, fewer than 2 items, scores that are not finite.

    Example:
        >>> ndcg(np.array([[3.0, 1.0, 2.0], [2.0, 1.0, 3.0]]), k=1)
        0.5
    """
    return float(gains(scores, k, _discounted).mean())


def hit_rate(scores: np.ndarray, k: int = 10) -> float:
    """HR@k with one relevant item a user: ``mean [rank <= k]``; ties as in :func:`ndcg`.

    Args:
        scores: [users, items], the positive in the first column.
        k: length of the list.

    Example:
        >>> hit_rate(np.zeros((4, 100)))
        0.1
    """
    return float(gains(scores, k, np.ones_like).mean())


def gains(scores: np.ndarray, k: int, gain: Gain) -> np.ndarray:
    """Expected gain of each user's positive when ties are broken at random, [users]."""
    s = numbers(scores, "scores", ndim=2)
    if s.shape[1] < 2 or k < 1:
        raise ConfigError("needs a positive, at least 1 negative and k >= 1", where="scores", mend=MEND)
    above = (s[:, 1:] > s[:, :1]).sum(1)
    tied = (s[:, 1:] == s[:, :1]).sum(1)
    ranks = np.arange(1.0, s.shape[1] + 1)
    total = np.concatenate([[0.0], np.cumsum(np.where(ranks <= k, gain(ranks), 0.0))])
    return (total[above + tied + 1] - total[above]) / (tied + 1)


def lists(ground: Ground, *, negatives: int = NEGATIVES) -> Queries:
    """The prompts of the ranking: for each user their last liked test item, then sampled negatives.

    Negatives are items that the user never rated, drawn evenly over the catalogue; every list is asked with
    the history of its positive. Users beyond ``ground.rank_users`` are left out at random.

    Returns:
        Queries [users x (1 + negatives)], the positive first in each list.

    Raises:
        CannotError: nobody liked a test item, or somebody rated almost the whole catalogue.

    Source: He et al. 2017 (NCF): 1 positive and 99 sampled negatives.
    """
    data, test = ground.data, ground.split.test
    liked = np.flatnonzero(test.label == 1)
    liked = liked[np.argsort(test.target[liked], kind="stable")]  # rows of the data: by user, then by time
    user = data.user_code[test.target[liked]]
    last = liked[np.append(np.diff(user) != 0, True)] if len(liked) else liked
    if not len(last):
        raise CannotError("nobody liked a test item")
    rng = np.random.default_rng([ground.seed, 17])
    if len(last) > ground.rank_users:
        last = np.sort(rng.choice(last, ground.rank_users, replace=False))
    asked = queries(data, test.take(np.repeat(last, 1 + negatives)))
    candidate = asked.candidate.reshape(-1, 1 + negatives).copy()
    for row, u in enumerate(data.user_code[test.target[last]]):
        seen = data.item_code[data.first[u] : data.first[u + 1]]
        free = np.setdiff1d(np.arange(len(data.items)), seen)
        if len(free) < negatives:
            raise CannotError(f"a user left fewer than {negatives} items unrated: no negatives to sample")
        candidate[row, 1:] = rng.choice(free, negatives, replace=False)
    return Queries(asked.history, asked.rating, candidate.ravel().astype(np.int32), asked.label)


def ranked(scene: Scene, one: Candidate) -> np.ndarray:
    """Margins of all lists, [users, 100]; scored once a model."""
    ground = scene.ground
    if "ranking" not in one.memo:
        if one.rebuild is not None:
            raise CannotError("a method of retrieval changes the histories, and these lists are asked as is")
        if one.model is None:
            raise CannotError("the model itself is not at hand")
        if "ranking" not in ground.memo:
            ground.memo["ranking"] = ground.encode(lists(ground))
        scored = margin(ground.score(one.model, ground.memo["ranking"]))
        one.memo["ranking"] = scored.reshape(-1, 1 + NEGATIVES)
    return one.memo["ranking"]


def _measured(gain: Gain) -> Callable[[Scene], Value]:
    def compute(scene: Scene) -> Value:
        each = gains(ranked(scene, scene.subject), LENGTH, gain)  # one list a user: rows are users
        low, high = (None, None)
        if len(each) > 1:
            low, high = mean_interval(each, draws=scene.ground.draws, seed=scene.ground.seed)
        return Value(float(each.mean()), low, high, n=len(each))

    return compute


NDCG = Metric(
    "ndcg_at_10",
    2,
    "share",
    "higher",
    ("model",),
    "mean over users of 1 / log2(rank + 1) if rank <= 10, else 0; last liked test item + 99 negatives",
    "Jarvelin and Kekalainen 2002; sampling as in He et al. 2017 (NCF)",
    _measured(_discounted),
    cost="scoring",
)
HIT_RATE = Metric(
    "hr_at_10",
    2,
    "share",
    "higher",
    ("model",),
    "share of users whose positive ranks 10th or better; last liked test item + 99 sampled negatives",
    "He et al. 2017 (NCF)",
    _measured(np.ones_like),
    cost="scoring",
)
