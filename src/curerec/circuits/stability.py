"""How far a circuit depends on the pairs, seeds, templates and scorers it was found with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from scipy.stats import hypergeom, pearsonr, spearmanr

from curerec.records import Circuit, EdgeCircuit

STABLE = 0.8  # overlap over resamples that is enough
#: Share of the way from the overlap of chance to 1 that is enough, too: Cohen's kappa from which agreement is
#: called substantial (Landis and Koch 1977). It asks for more than :data:`STABLE` of circuits of over two
#: thirds of the model, of which random ones overlap by half and more.
BEYOND = 0.6


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


def bootstrap_jaccard(
    scores: np.ndarray,
    size: int,
    *,
    draws: int,
    rng: np.random.Generator,
    threshold: float | None = None,
) -> float:
    """Mean overlap |A & B| / |A | B| of the top ``size`` elements over pairs of bootstrap resamples.

    Args:
        scores: per example, [n, elements].
        size: of the circuit.
        draws: resamples.
        rng: of them.
        threshold: |mean score| that the circuit was chosen by, logits: each resample then takes all elements
            of at least so much, however many they are. None: the top ``size``.
    """
    means = np.abs(bootstrap_means(scores, draws=draws, rng=rng))
    if threshold is not None:
        return paired_overlap(means >= threshold)
    member = np.zeros(means.shape, bool)
    np.put_along_axis(member, np.argsort(-means, axis=1)[:, :size], True, axis=1)
    return paired_overlap(member)


def paired_overlap(member: np.ndarray) -> float:
    """Mean Jaccard overlap of sets 0 and 1, 2 and 3, ..., bool [draws, elements]."""
    both = len(member) // 2
    a, b = member[: 2 * both : 2], member[1 : 2 * both : 2]
    union = (a | b).sum(1)
    return float(np.mean(np.where(union > 0, (a & b).sum(1) / np.maximum(union, 1), 1.0)))


def chance_jaccard(total: int, size: int) -> float:
    """Expected |A & B| / |A | B| of two random sets of ``size`` elements of ``total``; 1 of none or all.

    The number of common elements is hypergeometric. Connected circuits of edges are held to the same figure,
    as if any edges could make one up.

    >>> round(chance_jaccard(10, 9), 2), round(chance_jaccard(54, 50), 2), chance_jaccard(10, 10)
    (0.82, 0.86, 1.0)
    """
    if not 0 < size < total:
        return 1.0
    both = np.arange(max(0, 2 * size - total), size + 1)
    return float(hypergeom.pmf(both, total, size, size) @ (both / (2 * size - both)))


def beyond_chance(overlap: float, chance: float) -> float:
    """(J - J0) / (1 - J0): 0 of random circuits, 1 of equal ones.

    The overlap itself where chance is not known (nan); nan where chance gives 1, of circuits of everything.

    >>> round(beyond_chance(0.95, 0.82), 2), beyond_chance(0.7, float("nan"))
    (0.72, 0.7)
    """
    if np.isnan(chance):
        return overlap
    return (overlap - chance) / (1 - chance) if chance < 1 - 1e-9 else float("nan")


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
        """Over distinct pairs; nan of fewer than two circuits, which overlap with nothing."""
        if len(self.names) < 2:
            return float("nan")
        return float(self.matrix[np.triu_indices(len(self.names), 1)].mean())

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
    find: Callable[[int, Granularity], Found],
    pairs: int,
    *,
    start: int,
    least: float = STABLE,
    coarser: bool = True,
) -> tuple[Found, tuple[str, ...]]:
    """Look for a circuit that resamples do not overturn: first with more pairs, then with coarser modules.

    Its overlap has to reach ``least``, and :data:`BEYOND` of the way from the overlap of chance to 1. A
    circuit of everything is handed back at once: each resample has it, whatever the scores, and nothing can
    mend that.

    Args:
        find: finds a circuit, of modules or of edges, from the first so many pairs at ``head_mlp`` or
            ``block`` granularity.
        pairs: how many there are.
        start: how many to begin with.
        least: overlap over resamples that is enough.
        coarser: whether coarser modules will do; not where so many single ones were asked for.

    Returns:
        The circuit, and what was done to get it, in words. Where nothing helps, the more stable of the two
        granularities with all pairs, single modules where they do as well; the last word is then a warning.
    """
    said: list[str] = []
    used = min(start, pairs)

    def beyond(circuit: Found) -> float:
        return beyond_chance(circuit.jaccard, circuit.jaccard_chance)

    def enough(circuit: Found) -> bool:
        return circuit.jaccard >= least and beyond(circuit) >= BEYOND

    def short(circuit: Found) -> str:
        found = f"overlap over resamples {circuit.jaccard:.2f}"
        if circuit.jaccard >= least:
            chance = f"{circuit.jaccard_chance:.2f}"
            return f"{found} is too near the {chance} of random circuits of its size with {used} pairs"
        return f"{found} is below {least} with {used} pairs"

    while True:
        fine = find(used, "head_mlp")
        if enough(fine):
            return fine, tuple(said)
        if np.isnan(beyond(fine)):
            held = "is all there is to choose from" if fine.core else "holds nothing"
            said.append(
                f"the circuit found with {used} pairs {held}: every resample has it, so its overlap says "
                "nothing of how stable it is, nor does it say which parts matter"
            )
            return fine, tuple(said)
        if used == pairs:
            break
        said.append(f"{short(fine)}: went on with {min(2 * used, pairs)}")
        used = min(2 * used, pairs)
    if not coarser:
        return fine, (*said, f"{short(fine)}: this circuit is not stable")
    coarse = find(used, "block")
    if enough(coarse):
        said.append(f"{short(fine)}, all there are: took all heads of a layer as one module")
        return coarse, tuple(said)
    better = coarse if beyond(coarse) > beyond(fine) else fine  # never one that takes everything (nan)
    said.append(
        f"{short(fine)}, {coarse.jaccard:.2f} with all heads of a layer as one module: this circuit, of "
        f"{'such' if better is coarse else 'single'} modules, is not stable"
    )
    return better, tuple(said)
