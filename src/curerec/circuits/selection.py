"""Choosing a circuit from scores: prefixes, top-k, a threshold, and connected circuits of edges."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from curerec.circuits.wiring import INPUT, LOGITS, Wiring

#: Pairs that judge circuits of edges at most. Ranks of thousands of edges take hundreds of pairs to settle;
#: the faithfulness of a set does not, and each pair is run once a set.
JUDGED = 64


def halves(n: int, seed: int, *, judged: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that rank and pairs that judge, int each: the halves of every search with the same seed.

    Args:
        n: pairs.
        seed: of the draw.
        judged: at most so many judge and the others rank; None: half.
    """
    order = np.random.default_rng([seed, 41]).permutation(n)
    judge = min(n - n // 2, judged or n)
    return order[: n - judge], order[n - judge :]


def ranking(scores: np.ndarray) -> np.ndarray:
    """Elements by falling |mean score|, int [elements].

    Args:
        scores: [examples, elements].
    """
    return np.argsort(-np.abs(scores.mean(0)), kind="stable")


def top_k(scores: np.ndarray, k: int) -> tuple[int, ...]:
    """The k elements of largest |mean score|."""
    return tuple(int(i) for i in ranking(scores)[:k])


def above(scores: np.ndarray, threshold: float) -> tuple[int, ...]:
    """The elements whose |mean score| is at least ``threshold`` (logits), by falling score."""
    means = np.abs(scores.mean(0))
    return tuple(int(i) for i in ranking(scores) if means[i] >= threshold)


def smallest_faithful(curve: Sequence[tuple[int, float]], threshold: float) -> int:
    """Place in the curve of the first size with faithfulness >= ``threshold``; the last if there is none."""
    for at, (_, f) in enumerate(curve):
        if f >= threshold:
            return at
    return len(curve) - 1


def sizes_to_judge(n: int, *, most: int = 48) -> list[int]:
    """Circuit sizes to judge: all of a small model's, a geometric grid of a large one's."""
    if n <= most:
        return list(range(n + 1))
    grid = np.unique(np.geomspace(1, n, min(most, 32)).round().astype(int))
    return sorted({0, n, *(int(k) for k in grid)})


def greedy_order(mean: np.ndarray, wiring: Wiring) -> Iterator[int]:
    """Edges in the order a search from the logits upwards takes them, best |score| first.

    Only edges into a node that is in the circuit already may be taken, so every prefix hangs together from
    the logits; each new source makes the edges into its own readers eligible.

    Args:
        mean: mean score of every edge, in the order of :func:`curerec.circuits.edges.edge_scores`.
        wiring: of the model.

    Yields:
        Indices of edges; all of them in the end.

    Source: Hanna et al. 2024, EAP-IG (``apply_greedy``); queries, keys and values of a head come with it, and
        keys and values with the first head of their group.
    """
    source, reader = np.nonzero(wiring.mask)
    into: dict[str, list[int]] = {name: [] for name in wiring.readers}
    for k, r in enumerate(reader):
        into[wiring.readers[r]].append(k)
    weight = -np.abs(mean)
    heap: list[tuple[float, int]] = []
    opened: set[str] = set()

    def open_reader(name: str) -> None:
        if name not in opened:
            opened.add(name)
            for k in into[name]:
                heapq.heappush(heap, (float(weight[k]), k))

    open_reader(LOGITS)
    while heap:
        _, k = heapq.heappop(heap)
        yield k
        name = wiring.sources[source[k]]
        if name != INPUT:
            for read in wiring.readers_of(name):
                open_reader(read)


def pruned(edges: Sequence[int] | np.ndarray, wiring: Wiring) -> tuple[int, ...]:
    """The edges that lie on a path from the embedding to the logits, in their order.

    A node that nothing of the circuit enters computes what it does on the corrupt prompt, so what it writes
    is no part of the circuit; one whose writes nobody reads is none either. Leaving both out changes no run.

    Source: Hanna et al. 2024, EAP-IG (``prune``).
    """
    source, reader = np.nonzero(wiring.mask)
    left = [int(k) for k in edges]
    while True:
        fed = {INPUT} | {m for k in left for m in wiring.modules_of(wiring.readers[reader[k]])}
        wanted = {wiring.sources[source[k]] for k in left}

        def alive(k: int, fed: set[str] = fed, wanted: set[str] = wanted) -> bool:
            name = wiring.readers[reader[k]]
            read = name == LOGITS or any(m in wanted for m in wiring.modules_of(name))
            return wiring.sources[source[k]] in fed and read

        kept = [k for k in left if alive(k)]
        if len(kept) == len(left):
            return tuple(kept)
        left = kept
