"""The user-item graph of liked interactions, and personalised PageRank on it."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from curerec.data.splits import LIKED
from curerec.interactions import Interactions

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
    n_users, n_items = len(data.user_ids), len(data.items)
    user, item = data.user_code[rows], data.item_code[rows] + n_users
    ones = np.ones(2 * len(rows))
    shape = (n_users + n_items, n_users + n_items)
    ends = (np.r_[user, item], np.r_[item, user])
    adjacency: sparse.csr_array = sparse.csr_array((ones, ends), shape=shape)
    degree = adjacency.sum(1)
    scale = np.divide(1.0, degree, out=np.zeros_like(degree), where=degree > 0)
    return (sparse.diags_array(scale) @ adjacency).tocsr()


def personalised_pagerank(
    walk: sparse.csr_array,
    starts: np.ndarray,
    *,
    n_users: int,
    restart: float = RESTART,
    tol: float = 1e-8,
    max_iter: int = 200,
) -> np.ndarray:
    """Personalised PageRank from many start nodes at once.

    ``r = restart e_s + (1 - restart) W^T r``; mass that reaches a node without edges returns to the start.
    Users have edges to items only and items to users, so a sweep takes the users' ranks from the items' and
    then the items' from these (block Gauss-Seidel): the error falls by ``(1 - restart)^2`` a sweep, which
    costs what a step of power iteration does.

    Args:
        walk: of :func:`liked_graph`, row-stochastic, [n, n]; users first.
        starts: start nodes, int [b].
        n_users: how many of the nodes are users.
        restart: 0 < restart <= 1.
        tol: stop once no start's vector moves more than this in L1.
        max_iter: at most so many sweeps; the error then is below (1 - restart)^(2 max_iter).

    Returns:
        float64 [b, n], rows summing to 1.

    Source: METHOD section 2; Haveliwala 2002 (topic-sensitive PageRank); Gleich 2015 (PageRank beyond the
        web), section 2 (as a linear system).
    """
    n, column = walk.shape[0], np.arange(len(starts))
    home = np.zeros((n, len(starts)))
    home[starts, column] = restart
    to_items = (1 - restart) * walk[:n_users, n_users:].T.tocsr()
    to_users = (1 - restart) * walk[n_users:, :n_users].T.tocsr()
    users, items = home[:n_users].copy(), home[n_users:].copy()
    for _ in range(max_iter):
        new_users = home[:n_users] + to_users @ items
        new_items = home[n_users:] + to_items @ new_users
        moved = np.abs(new_users - users).sum(0) + np.abs(new_items - items).sum(0)
        users, items = new_users, new_items
        if moved.max(initial=0) < tol:
            break
    rank = np.concatenate([users, items]).T
    # No edge leads to a node without edges: mass is there only where it started, and stays.
    return np.ascontiguousarray(rank / rank.sum(1, keepdims=True))
