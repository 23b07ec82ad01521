"""Ranking use: where the liked item stands among sampled negatives."""

from __future__ import annotations

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation.inputs import MEND, numbers
from curerec.evaluation.metric import Metric

NDCG = Metric(
    "ndcg_at_10",
    1,
    "share",
    "higher",
    ("negatives",),
    "mean over users of 1 / log2(rank + 1) if rank <= 10, else 0; 1 positive + 99 sampled negatives",
    "Jarvelin and Kekalainen 2002; sampling as in He et al. 2017 (NCF)",
)
HIT_RATE = Metric(
    "hr_at_10",
    1,
    "share",
    "higher",
    ("negatives",),
    "share of users whose positive ranks 10th or better; 1 positive + 99 sampled negatives",
    "He et al. 2017 (NCF)",
)


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
    return _mean_gain(scores, k, lambda rank: 1 / np.log2(rank + 1))


def hit_rate(scores: np.ndarray, k: int = 10) -> float:
    """HR@k with one relevant item a user: ``mean [rank <= k]``; ties as in :func:`ndcg`.

    Args:
        scores: [users, items], the positive in the first column.
        k: length of the list.

    Example:
        >>> hit_rate(np.zeros((4, 100)))
        0.1
    """
    return _mean_gain(scores, k, np.ones_like)


def _mean_gain(scores: np.ndarray, k: int, gain) -> float:
    """Mean over users of the expected gain of the positive's rank when ties are broken at random."""
    s = numbers(scores, "scores", ndim=2)
    if s.shape[1] < 2 or k < 1:
        raise ConfigError("needs a positive, at least 1 negative and k >= 1", where="scores", mend=MEND)
    above = (s[:, 1:] > s[:, :1]).sum(1)
    tied = (s[:, 1:] == s[:, :1]).sum(1)
    ranks = np.arange(1.0, s.shape[1] + 1)
    total = np.concatenate([[0.0], np.cumsum(np.where(ranks <= k, gain(ranks), 0.0))])
    return float(((total[above + tied + 1] - total[above]) / (tied + 1)).mean())
