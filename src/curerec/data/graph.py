"""The user-item graph of liked interactions, and personalised PageRank on it."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from curerec.data.splits import LIKED
from curerec.records import Interactions

RESTART = 0.15  # probability of returning to the start node at each step (METHOD section 2)


def liked_graph(data: Interactions, rows: np.ndarray) -> sparse.csr_array:
    """Row-stochastic random walk on the bipartite graph of liked interactions.

    Args:
        data: interactions.
        rows: rows that may be used (training interactions; never held-out ones).

    Returns:
        csr [n_users + n_items, n_users + n_items]; nodes without an edge have an empty row.
    """
    rows = rows[data.rating[rows] >= LIKED]
    n_users, n_items = len(data.users), len(data.items)
    user, item = data.user_code[rows], data.item_code[rows] + n_users
    ones = np.ones(2 * len(rows))
    shape = (n_users + n_items, n_users + n_items)
    adjacency = sparse.csr_array((ones, (np.r_[user, item], np.r_[item, user])), shape=shape)
    degree = adjacency.sum(1)
    scale = np.divide(1.0, degree, out=np.zeros_like(degree), where=degree > 0)
    return (sparse.diags_array(scale) @ adjacency).tocsr()


def personalised_pagerank(
    walk: sparse.csr_array,
    starts: np.ndarray,
    *,
    restart: float = RESTART,
    tol: float = 1e-8,
    max_iter: int = 200,
) -> np.ndarray:
    """Personalised PageRank from many start nodes at once.

    ``r = restart e_s + (1 - restart) W^T r``, by power iteration; mass that reaches a node without edges
    returns to the start.

    Args:
        walk: row-stochastic matrix, [n, n].
        starts: start nodes, int [b].
        restart: 0 < restart <= 1.
        tol: stop once no start's vector moves more than this in L1.
        max_iter: at most so many steps; the error then is below (1 - restart)^max_iter.

    Returns:
        float64 [b, n], rows summing to 1.

    Source: METHOD section 2; Haveliwala 2002 (topic-sensitive PageRank).
    """
    n = walk.shape[0]
    home = sparse.csr_array(
        (np.ones(len(starts)), (np.arange(len(starts)), starts)), shape=(len(starts), n)
    ).toarray()
    dangling = walk.sum(1) == 0
    rank = home.copy()
    step = walk.T.tocsr()
    for _ in range(max_iter):
        lost = rank[:, dangling].sum(1, keepdims=True)
        new = restart * home + (1 - restart) * ((step @ rank.T).T + lost * home)
        moved = np.abs(new - rank).sum(1).max()
        rank = new
        if moved < tol:
            break
    return rank
