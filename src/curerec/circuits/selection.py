"""Choosing a circuit from scores: prefixes, top-k, a threshold, and connected circuits of edges."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from curerec.circuits.wiring import INPUT, LOGITS, Wiring
from curerec.errors import ConfigError

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


@dataclass(frozen=True)
class Select:
    """How a circuit is chosen from scores.

    Attributes:
        kind: ``faithful`` (the smallest faithful one), ``top`` (so many) or ``threshold`` (all of at least so
            large a mean score).
        value: of ``top`` elements, of ``threshold`` logits.
    """

    kind: str = "faithful"
    value: float = 0.0

    def first(self, scores: np.ndarray) -> tuple[int, ...] | None:
        """The elements chosen, the largest first; None where faithfulness decides.

        Args:
            scores: [examples, elements].
        """
        if self.kind == "top":
            return top_k(scores, int(self.value))
        return above(scores, self.value) if self.kind == "threshold" else None


def selecting(text: str) -> Select:
    """A way to choose from its name.

    >>> selecting("faithful").kind, selecting("top:12").value, selecting("threshold:0.05").value
    ('faithful', 12.0, 0.05)

    Raises:
        ConfigError: it is none.
    """
    if text == "faithful":
        return Select()
    if found := re.fullmatch(r"top:([1-9]\d*)", text):
        return Select("top", float(found[1]))
    if text.startswith("threshold:"):
        try:
            value = float(text.removeprefix("threshold:"))
        except ValueError:
            value = math.nan
        if math.isfinite(value) and value >= 0:
            return Select("threshold", value)
    raise ConfigError(
        "is no way to choose a circuit",
        where=f"select {text[:40]!r}",
        mend="Use faithful, top:K (so many) or threshold:X (|mean score| of at least X logits)",
    )


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


def smallest_prefix(
    judge: Callable[[Sequence[int]], Sequence[tuple[int, float]]], sizes: Sequence[int], threshold: float
) -> tuple[list[int], tuple[tuple[int, float], ...], int]:
    """The smallest faithful prefix: first on a grid of sizes, then by bisection below the first that passes.

    Faithfulness need not grow with the size: of several sizes between a failing and a passing one at which it
    crosses the threshold, the one on the path of the bisection is taken. The prefix found passes and the one
    an element smaller does not; a smaller one still may.

    Args:
        judge: points (size, faithfulness) of the prefixes of these lengths.
        sizes: the grid, rising.
        threshold: smallest faithfulness accepted.

    Returns:
        The sizes judged, rising, their points, and the place of the prefix chosen; the last where none
        passes.
    """
    sizes, curve = list(sizes), list(judge(sizes))
    at = smallest_faithful(curve, threshold)
    while at and curve[at][1] >= threshold and sizes[at] - sizes[at - 1] > 1:
        middle = (sizes[at - 1] + sizes[at]) // 2
        sizes.insert(at, middle)
        curve.insert(at, *judge([middle]))
        at += curve[at][1] < threshold
    return sizes, tuple(curve), at


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
