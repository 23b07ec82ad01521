"""Personalised PageRank by local push: the work is that of the neighbourhood, not of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curerec.data.graph import RESTART
from curerec.data.packed import new_array
from curerec.data.splits import LIKED
from curerec.interactions import CHUNK, Interactions, release


@dataclass(frozen=True)
class Graph:
    """Undirected graph in compressed rows, memory-mapped or not; users first, then items.

    Attributes:
        start: int64 [n + 1].
        neighbour: int32 [2 edges].
    """

    start: np.ndarray
    neighbour: np.ndarray

    @property
    def n(self) -> int:
        """Number of nodes."""
        return len(self.start) - 1


def liked_graph_on_disk(
    data: Interactions, folder: Path, chosen: np.ndarray | None = None, *, chunk: int = CHUNK
) -> Graph:
    """The graph of liked interactions, written to a folder and mapped.

    Args:
        data: the interactions.
        folder: to write ``graph_start.npy`` and ``graph.npy`` to.
        chosen: the rows that may be used, bool [n_rows]; None: all.
        chunk: rows at a time.
    """
    n_users = len(data.user_ids)
    n = n_users + len(data.item_ids)

    def edges() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for k in range(0, len(data), chunk):
            part = slice(k, k + chunk)
            keep = data.rating[part] >= LIKED
            if chosen is not None:
                keep &= chosen[part]
            yield data.user_code[part][keep], data.item_code[part][keep] + n_users

    degree = np.zeros(n, np.int64)
    for u, i in edges():
        degree += np.bincount(u, minlength=n) + np.bincount(i, minlength=n)
    start = np.r_[0, np.cumsum(degree)]
    np.save(folder / "graph_start.npy", start)
    out = new_array(folder / "graph.npy", np.int32, int(start[-1]))
    filled = start[:-1].copy()
    for u, i in edges():
        for a, b in ((u, i), (i, u)):
            order = np.argsort(a, kind="stable")
            node = a[order]
            if not len(node):
                continue
            first = np.r_[0, np.flatnonzero(np.diff(node)) + 1]
            size = np.diff(np.r_[first, len(node)])
            out[filled[node] + np.arange(len(node)) - np.repeat(first, size)] = b[order]
            filled[node[first]] += size
        release(out)
    out.flush()
    return Graph(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("graph_start", "graph")))


def push(
    graph: Graph, source: int, *, restart: float = RESTART, tolerance: float = 1e-6, max_rounds: int = 10_000
) -> tuple[np.ndarray, np.ndarray]:
    """Personalised PageRank of one start node, where it is worth mentioning.

    A node whose residual is over ``tolerance`` times its degree keeps the share ``restart`` of it and hands
    the rest on to its neighbours, until there is none. All such nodes of a round go at once. What is left
    out of a node is at most ``tolerance`` times its degree, and edges read are at most
    1 / (restart * tolerance), however large the graph.

    Args:
        graph: undirected.
        source: start node.
        restart: as in :func:`curerec.data.graph.personalised_pagerank`.
        tolerance: residual left per edge.
        max_rounds: a bound that is never met.

    Returns:
        Nodes int64 [m], ascending, and their PageRank float64 [m], a lower bound of the exact one.

    Source: Andersen, Chung and Lang 2006 (local graph partitioning), without the lazy step.
    """
    if graph.start[source] == graph.start[source + 1]:  # its walk never leaves it
        return np.asarray([source]), np.asarray([1.0])
    # Sorted arrays of the nodes seen, not vectors over the graph.
    nodes, rank, rest = np.asarray([source]), np.zeros(1), np.ones(1)
    for _ in range(max_rounds):
        degree = graph.start[nodes + 1] - graph.start[nodes]
        active = np.flatnonzero(rest > tolerance * degree)
        if not len(active):
            break
        mass, size = rest[active].copy(), degree[active]
        rank[active] += restart * mass
        rest[active] = 0.0
        begin = np.asarray(graph.start[nodes[active]])
        at = np.repeat(begin - np.r_[0, np.cumsum(size)[:-1]], size) + np.arange(size.sum())
        target, where = np.unique(np.asarray(graph.neighbour[at], np.int64), return_inverse=True)
        given = np.bincount(where, np.repeat((1 - restart) * mass / size, size), len(target))
        merged = np.union1d(nodes, target)
        old, new = np.searchsorted(merged, nodes), np.searchsorted(merged, target)
        wider_rank, wider_rest = np.zeros(len(merged)), np.zeros(len(merged))
        wider_rank[old], wider_rest[old] = rank, rest
        wider_rest[new] += given
        nodes, rank, rest = merged, wider_rank, wider_rest
    kept = rank > 0
    return nodes[kept], rank[kept]
