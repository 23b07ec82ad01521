"""Personalised PageRank against networkx and a dense solve."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.data.graph import RESTART, liked_graph, personalised_pagerank
from made_catalogue import made_catalogue

DATA = made_catalogue(20, 40, (4, 12))
ROWS = np.random.default_rng(0).permutation(len(DATA))[: len(DATA) // 2]
WALK = liked_graph(DATA, ROWS)
N_USERS = len(DATA.users)


def dense(walk, start, restart):
    n = walk.shape[0]
    step = walk.toarray()
    step[step.sum(1) == 0, start] = 1  # a walker at a dead end goes home
    home = np.eye(n)[start]
    return np.linalg.solve(np.eye(n) - (1 - restart) * step.T, restart * home)


def test_the_graph_has_an_edge_for_each_liked_row_that_may_be_used():
    liked = {(DATA.user_code[r], DATA.item_code[r] + N_USERS) for r in ROWS if DATA.rating[r] >= 4}
    edges = set(zip(*WALK.nonzero(), strict=True))
    assert edges == liked | {(b, a) for a, b in liked}
    degree = np.bincount([a for a, _ in edges], minlength=WALK.shape[0])
    np.testing.assert_allclose(WALK.sum(1), degree > 0)
    for a, b in edges:
        assert WALK[a, b] == pytest.approx(1 / degree[a])


@pytest.mark.parametrize("restart", [RESTART, 0.5, 1.0])
def test_against_a_dense_solve_from_every_node(restart):
    starts = np.arange(WALK.shape[0])
    got = personalised_pagerank(WALK, starts, n_users=N_USERS, restart=restart, tol=1e-10, max_iter=400)
    want = np.stack([dense(WALK, s, restart) for s in starts])
    np.testing.assert_allclose(got, want, atol=1e-8)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-12)
    assert (got >= 0).all()


def test_against_networkx():
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph()
    graph.add_nodes_from(range(WALK.shape[0]))
    graph.add_edges_from(zip(*WALK.nonzero(), strict=True))
    starts = [N_USERS, N_USERS + 7, 3]
    got = personalised_pagerank(WALK, np.asarray(starts), n_users=N_USERS)
    for row, start in zip(got, starts, strict=True):
        want = networkx.pagerank(
            graph, alpha=1 - RESTART, personalization={start: 1}, tol=1e-12, max_iter=500
        )
        np.testing.assert_allclose(row, [want[k] for k in range(len(row))], atol=1e-6)


def test_a_walk_from_an_isolated_node_stays_there():
    alone = int(np.flatnonzero(WALK.sum(1) == 0)[0])
    got = personalised_pagerank(WALK, np.asarray([alone]), n_users=N_USERS)[0]
    np.testing.assert_allclose(got, np.eye(len(got))[alone])


def test_a_graph_without_an_edge_and_starts_in_any_order():
    empty = liked_graph(DATA, np.zeros(0, np.int64))
    assert empty.nnz == 0
    np.testing.assert_array_equal(
        personalised_pagerank(empty, np.asarray([2, 2]), n_users=N_USERS), np.eye(empty.shape[0])[[2, 2]]
    )
    starts = np.asarray([5, N_USERS + 3, 5])
    many = personalised_pagerank(WALK, starts, n_users=N_USERS)
    for row, start in zip(many, starts, strict=True):
        np.testing.assert_allclose(
            row, personalised_pagerank(WALK, np.asarray([start]), n_users=N_USERS)[0], atol=1e-7
        )
