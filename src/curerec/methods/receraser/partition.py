"""User vectors by matrix factorisation, and clusters of equal size."""

from __future__ import annotations

import numpy as np

from curerec.data.splits import LIKED
from curerec.interactions import Interactions

CONFIDENCE = 40.0  # of a liked item over an unrated one (Hu et al. 2008)
RIDGE = 1.0


def factors(
    data: Interactions, rows: np.ndarray, width: int, *, rounds: int = 8, seed: int = 0
) -> np.ndarray:
    """User vectors by weighted matrix factorisation of liked interactions, float64 [n_users, width].

    Alternating least squares on preference 1 where liked, with confidence ``1 + 40 liked``.

    Args:
        data: interactions.
        rows: that may be used (training interactions).
        width: of the vectors.
        rounds: of both sides.
        seed: of the first item vectors.

    Source: Hu, Koren and Volinsky 2008, eq. 4 and 5.
    """
    liked = rows[data.rating[rows] >= LIKED]
    shape = (len(data.user_ids), len(data.items))
    likes = np.zeros(shape, bool)
    likes[data.user_code[liked], data.item_code[liked]] = True
    item = np.random.default_rng([seed, 102]).normal(scale=0.1, size=(shape[1], width))
    user = np.zeros((shape[0], width))
    for _ in range(rounds):
        user = solve(likes, item)
        item = solve(likes.T, user)
    return user


def solve(likes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Vectors of one side given the other's: a weighted ridge regression each; 0 where nothing is liked.

    Args:
        likes: bool [n, m].
        other: float64 [m, width].

    Returns:
        float64 [n, width].
    """
    common = other.T @ other + RIDGE * np.eye(other.shape[1])
    out = np.zeros((len(likes), other.shape[1]))
    for k, mine in enumerate(likes):
        chosen = other[mine]
        if len(chosen):
            left = common + CONFIDENCE * chosen.T @ chosen
            out[k] = np.linalg.solve(left, (1 + CONFIDENCE) * chosen.sum(0))
    return out


def balanced(
    vectors: np.ndarray, clusters: int, *, rounds: int = 50, cap: float = 1.2, seed: int = 0
) -> np.ndarray:
    """Clusters of nearly equal size, int [n].

    All pairs of user and anchor are gone through by falling ``-|p_u - a_k|^2``; a user joins the first anchor
    that is not full. Anchors move to their users' means until nothing changes.

    Args:
        vectors: of the users, [n, width].
        clusters: K; no more than n.
        rounds: at most so many.
        cap: largest cluster over n / K.
        seed: of the first anchors, drawn among the users.

    Source: Chen et al. 2022 (RecEraser), arXiv 2201.06820, algorithm 1 (user-based balanced partition).
    """
    n = len(vectors)
    clusters = min(clusters, n)
    room = int(np.ceil(cap * n / clusters))
    anchors = vectors[np.random.default_rng([seed, 104]).choice(n, clusters, replace=False)]
    out = np.full(n, -1)
    for _ in range(rounds):
        distance = ((vectors[:, None] - anchors[None]) ** 2).sum(-1)
        new, size = np.full(n, -1), np.zeros(clusters, int)
        for pair in np.argsort(distance, axis=None, kind="stable"):
            u, k = divmod(int(pair), clusters)
            if new[u] < 0 and size[k] < room:
                new[u] = k
                size[k] += 1
        if (new == out).all():
            break
        out = new
        for k in range(clusters):
            if size[k]:
                anchors[k] = vectors[out == k].mean(0)
    return np.unique(out, return_inverse=True)[1]
