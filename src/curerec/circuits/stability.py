"""How far a circuit depends on the pairs, seeds, templates and scorers it was found with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from scipy.stats import pearsonr, spearmanr

from curerec.records import Circuit, EdgeCircuit


def bootstrap_means(scores: np.ndarray, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Mean scores of bootstrap resamples of the examples, [draws, elements]; no model is run.

    Args:
        scores: per example, [n, elements].
    """
    n = len(scores)
    return (rng.multinomial(n, np.full(n, 1 / n), size=draws) / n) @ scores


def bootstrap_intervals(
    scores: np.ndarray, *, draws: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of each mean score, float32 [elements] each.

    Args:
        scores: per example, [n, elements].
        level: coverage aimed at.

    Source: Efron 1979.
    """
    means = bootstrap_means(scores, draws=draws, rng=np.random.default_rng([seed, 47]))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low.astype(np.float32), high.astype(np.float32)


def bootstrap_jaccard(scores: np.ndarray, size: int, *, draws: int, rng: np.random.Generator) -> float:
    """Mean overlap |A & B| / |A | B| of the top ``size`` elements over pairs of bootstrap resamples."""
    means = np.abs(bootstrap_means(scores, draws=draws, rng=rng))
    member = np.zeros(means.shape, bool)
    np.put_along_axis(member, np.argsort(-means, axis=1)[:, :size], True, axis=1)
    return paired_overlap(member)


def paired_overlap(member: np.ndarray) -> float:
    """Mean Jaccard overlap of sets 0 and 1, 2 and 3, ..., bool [draws, elements]."""
    both = len(member) // 2
    a, b = member[: 2 * both : 2], member[1 : 2 * both : 2]
    union = (a | b).sum(1)
    return float(np.mean(np.where(union > 0, (a & b).sum(1) / np.maximum(union, 1), 1.0)))


def agreement(guess: np.ndarray, truth: np.ndarray, *, top: int = 20) -> dict[str, float]:
    """How far a scorer's mean scores agree with exact ones.

    Args:
        guess: mean scores, [modules].
        truth: exact mean scores of the same modules, [modules].
        top: how many of the largest |exact| scores to look for among as many of the largest |guess|; at most
            half of the modules, since of all of them every scorer finds all.

    Returns:
        ``pearson``, ``spearman``, ``top_recall`` and ``modules``; the first three are nan where one of the
        two does not vary.
    """
    n = len(truth)
    out = {"pearson": float("nan"), "spearman": float("nan"), "top_recall": float("nan"), "modules": n}
    if n >= 3 and min(np.ptp(guess), np.ptp(truth)) > 1e-12:
        k = max(1, min(top, n // 2))
        best, found = (set(np.argsort(-np.abs(v), kind="stable")[:k].tolist()) for v in (truth, guess))
        out["pearson"] = float(pearsonr(guess, truth).statistic)
        out["spearman"] = float(spearmanr(guess, truth).statistic)
        out["top_recall"] = len(best & found) / k
    return out


def jaccard(a: Collection[str], b: Collection[str]) -> float:
    """|A & B| / |A | B|; two empty sets are the same.

    >>> jaccard({"x", "y"}, {"y", "z"}), jaccard((), ())
    (0.3333333333333333, 1.0)
    """
    union = set(a) | set(b)
    return len(set(a) & set(b)) / len(union) if union else 1.0


@dataclass(frozen=True)
class Overlaps:
    """Jaccard overlap of every two circuits, symmetric [n, n]."""

    names: tuple[str, ...]
    matrix: np.ndarray

    @property
    def mean(self) -> float:
        """Over distinct pairs; 1 of a single circuit."""
        above = self.matrix[np.triu_indices(len(self.names), 1)]
        return float(above.mean()) if len(above) else 1.0

    @property
    def least(self) -> tuple[str, str, float]:
        """The two circuits that agree least, and their overlap."""
        pairs = list(zip(*np.triu_indices(len(self.names), 1), strict=True))
        a, b = min(pairs, key=lambda p: self.matrix[p])
        return self.names[a], self.names[b], float(self.matrix[a, b])


def overlaps(circuits: Mapping[str, Circuit]) -> Overlaps:
    """Overlap of core circuits found with different scorers, seeds, templates or pairs.

    Args:
        circuits: name of the variant -> its circuit.
    """
    cores = [{c.modules[k] for k in c.core} for c in circuits.values()]
    matrix = np.asarray([[jaccard(a, b) for b in cores] for a in cores])
    return Overlaps(tuple(circuits), matrix)


Granularity = Literal["head_mlp", "block"]
Found = TypeVar("Found", Circuit, EdgeCircuit)


def settle(
    find: Callable[[int, Granularity], Found], pairs: int, *, start: int, least: float = 0.8
) -> tuple[Found, tuple[str, ...]]:
    """Look for a circuit that resamples do not overturn: first with more pairs, then with coarser modules.

    Args:
        find: finds a circuit, of modules or of edges, from the first so many pairs at ``head_mlp`` or
            ``block`` granularity.
        pairs: how many there are.
        start: how many to begin with.
        least: overlap over resamples that is enough.

    Returns:
        The circuit, and what was done to get it, in words. Where nothing helps, the more stable of the two
        granularities with all pairs, single modules where they do as well; the last word is then a warning.
    """
    said: list[str] = []
    used = min(start, pairs)

    def short(circuit: Found) -> str:
        return f"overlap over resamples {circuit.jaccard:.2f} is below {least} with {used} pairs"

    while (fine := find(used, "head_mlp")).jaccard < least and used < pairs:
        said.append(f"{short(fine)}: went on with {min(2 * used, pairs)}")
        used = min(2 * used, pairs)
    if fine.jaccard >= least:
        return fine, tuple(said)
    coarse = find(used, "block")
    if coarse.jaccard >= least:
        said.append(f"{short(fine)}, all there are: took all heads of a layer as one module")
        return coarse, tuple(said)
    better = coarse if coarse.jaccard > fine.jaccard else fine
    said.append(
        f"{short(fine)}, {coarse.jaccard:.2f} with all heads of a layer as one module: this circuit, of "
        f"{'such' if better is coarse else 'single'} modules, is not stable"
    )
    return better, tuple(said)
