"""What a circuit keeps of the model's answer: faithfulness, completeness, minimality, CPR and CMD.

All of it is stated over a :data:`Judge`, so modules and edges are measured by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from curerec.circuits.edge_patching import edge_patched_margins
from curerec.circuits.passes import MOVED, READ_NOTHING, Cost
from curerec.circuits.patching import patched_margins
from curerec.circuits.wiring import wiring_of
from curerec.errors import PromptError
from curerec.prompts.encoding import Prompts

#: Margins [sets, n] of runs in which only the elements of each set (indices) are kept, all else patched.
Judge = Callable[[Sequence[Collection[int]]], np.ndarray]


def judge_modules(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    names: Sequence[str],
    *,
    batch_size: int = 64,
    cost: Cost | None = None,
) -> Judge:
    """Judge of sets of modules, as indices into ``names``.

    Args:
        model, clean, corrupt, answers: as for :func:`curerec.circuits.patching.patched_margins`.
        names: of all modules.
        batch_size: pairs a pass; where memory ran out once, later calls begin with what fitted.
        cost: to be filled, over all calls; ``cost.notes(" while judging")`` says whether memory ran out.
    """
    everything = set(names)

    def runs(sets: Sequence[Collection[int]], size: int, spent: Cost) -> np.ndarray:
        patched = [everything - {names[k] for k in kept} for kept in sets]
        return patched_margins(model, clean, corrupt, answers, patched, batch_size=size, cost=spent)

    return _noting(runs, batch_size, cost)


def judge_edges(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    batch_size: int = 16,
    cost: Cost | None = None,
) -> Judge:
    """Judge of sets of edges, as indices in the order of :func:`curerec.circuits.edges.edge_scores`.

    Args:
        model, clean, corrupt, answers: as for :func:`curerec.circuits.edge_patching.edge_patched_margins`.
        batch_size, cost: as for :func:`judge_modules`.
    """
    mask = wiring_of(model).mask
    source, reader = np.nonzero(mask)

    def runs(sets: Sequence[Collection[int]], size: int, spent: Cost) -> np.ndarray:
        patched = []
        for kept in sets:
            chosen = np.fromiter(kept, int, len(kept))
            patched.append(mask.copy())
            patched[-1][source[chosen], reader[chosen]] = False
        return edge_patched_margins(model, clean, corrupt, answers, patched, batch_size=size, cost=spent)

    return _noting(runs, batch_size, cost)


def _noting(
    runs: Callable[[Sequence[Collection[int]], int, Cost], np.ndarray], batch_size: int, cost: Cost | None
) -> Judge:
    """A judge that keeps to the batch that fitted, and adds up what its calls took."""
    total, size = cost if cost is not None else Cost(), batch_size

    def judge(sets: Sequence[Collection[int]]) -> np.ndarray:
        nonlocal size
        spent = Cost()
        margins = runs(sets, size, spent)
        if spent.halved:
            size = spent.smallest_batch
        total.add(spent)
        return margins

    return judge


def faithfulness(
    full: np.ndarray, empty: np.ndarray, kept: np.ndarray, *, axis: int | None = None
) -> np.ndarray | float:
    """f(C) = (m(C) - m(empty)) / (m(full) - m(empty)), of mean margins.

    Args:
        full: margins of the clean run, [n].
        empty: margins with every module patched, [n].
        kept: margins with everything outside C patched, [..., n].
        axis: any value makes the result an array whatever the shape of ``kept``.

    Returns:
        float64 [...]; nan where it is not defined (:func:`undefined`).

    Source: METHOD section 4; Wang et al. 2022 (IOI), normalised as in Marks et al. 2024.
    """
    # Of float32 margins the mean itself would round.
    full, empty, kept = (np.asarray(m, np.float64) for m in (full, empty, kept))
    if undefined(full, empty):
        value = np.full(kept.shape[:-1], np.nan)
    else:
        value = (kept.mean(-1) - empty.mean()) / (full.mean() - empty.mean())
    return value if axis is not None or np.ndim(value) else float(value)


def undefined(full: np.ndarray, empty: np.ndarray) -> str | None:
    """Why faithfulness cannot be said of these pairs; None where it can.

    A gap that is rounding, or one of the wrong sign, would make any circuit faithful or none.

    Args:
        full, empty: margins of the clean and of the wholly patched run, [n].
    """
    fall = np.asarray(full, np.float64) - empty
    if not (np.abs(fall) > MOVED).any():
        return f"none of the {len(fall)} judging pairs moved the answer by more than {MOVED} logits"
    if not fall.mean() > 0:
        return f"the corrupted prompts of the {len(fall)} judging pairs do not lower the margin on average"
    return None


class Faithfulness:
    """f of any circuit over one judge; the clean and the wholly patched run are taken once.

    Args:
        judge: of modules or edges.
        total: number of elements, indices 0 to total - 1.

    Raises:
        PromptError: f is not defined, since no pair moves the margin by more than rounding, or the pairs do
            not lower it on average.
    """

    def __init__(self, judge: Judge, total: int) -> None:
        self.judge, self.total = judge, total
        self.full, self.empty = judge([range(total), ()])
        if why := undefined(self.full, self.empty):
            still = not (np.abs(self.full - self.empty) > MOVED).any()
            fall = "Use pairs whose margin falls (curerec.circuits.patching.moving_pairs), or more of them"
            raise PromptError(why, where="circuit", mend=READ_NOTHING if still else fall)

    def of(self, sets: Sequence[Collection[int]]) -> np.ndarray:
        """f of each set of kept elements, float64 [sets]."""
        if not sets:
            return np.zeros(0)
        return np.asarray(faithfulness(self.full, self.empty, self.judge(sets), axis=0), np.float64)

    def curve(self, sets: Sequence[Collection[int]]) -> tuple[tuple[int, float], ...]:
        """(size, f) of each set of kept elements."""
        return tuple((len(s), float(v)) for s, v in zip(sets, self.of(sets), strict=True))

    def complement(self, core: Collection[int]) -> set[int]:
        """All elements but those of a circuit."""
        return set(range(self.total)) - set(core)


def completeness(f: Faithfulness, core: Collection[int]) -> float:
    """1 - f(everything but the circuit): 1 where nothing outside it carries the answer.

    Source: METHOD section 4.
    """
    return 1 - float(f.of([f.complement(core)])[0])


def minimality(f: Faithfulness, core: Sequence[int]) -> np.ndarray:
    """f(C) - f(C without v) for each v of the circuit: what is lost when it alone is dropped, [len(core)].

    Source: Wang et al. 2022, arXiv 2211.00593, section 4, with K empty.
    """
    if not len(core):
        return np.zeros(0)
    whole = set(core)
    values = f.of([whole, *(whole - {v} for v in core)])
    return values[0] - values[1:]


def knockouts(
    f: Faithfulness,
    core: Sequence[int],
    *,
    draws: int = 10,
    steps: int = 3,
    candidates: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """Incompleteness |f(C without K) - f(M without K)| for sets K of the circuit's own elements.

    A complete circuit reacts to the loss of its parts as the whole model does; one that misses a back-up does
    not. K is drawn at random (half of the circuit), and grown greedily to make the gap as large as possible.

    Args:
        f: over the judging pairs.
        core: the circuit C.
        draws: random sets.
        steps: elements that the greedy search adds.
        candidates: elements it tries at each step, drawn at random.
        seed: of both.

    Returns:
        ``random`` (largest over the draws), ``random_mean``, ``greedy``.

    Source: Wang et al. 2022, arXiv 2211.00593, section 4 and appendix (greedy completeness).
    """
    rng = np.random.default_rng([seed, 43])
    whole, everything = set(core), set(range(f.total))

    def gaps(sets: list[set[int]]) -> np.ndarray:
        return np.abs(f.of([whole - k for k in sets]) - f.of([everything - k for k in sets]))

    if not whole:
        return {"random": 0.0, "random_mean": 0.0, "greedy": 0.0}
    half = max(1, len(whole) // 2)
    found = gaps([{int(v) for v in rng.choice(list(core), half, replace=False)} for _ in range(draws)])
    grown: set[int] = set()
    best = 0.0
    for _ in range(min(steps, len(whole))):
        left = np.asarray(sorted(whole - grown))
        tried = [grown | {int(v)} for v in rng.permutation(left)[:candidates]]
        gap = gaps(tried)
        if gap.max() <= best:
            break
        best, grown = float(gap.max()), tried[int(np.argmax(gap))]
    return {"random": float(found.max()), "random_mean": float(found.mean()), "greedy": best}


def areas(curve: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """CPR and CMD of a faithfulness curve from the empty to the full circuit.

    CPR is the integral of f over the share of elements kept (higher is better: the circuit carries the answer
    early), CMD that of |1 - f| (lower is better: neither too little nor, with negative parts left out, too
    much).

    >>> cpr, cmd = areas([(0, 0.0), (1, 1.0), (2, 1.0)])
    >>> round(cpr, 3), round(cmd, 3)
    (0.75, 0.25)

    Source: Mueller et al. 2025, MIB, arXiv 2504.13151, eq. 2 and 3; trapezoids over the sizes at hand.
    """
    size, f = (np.asarray(v, float) for v in zip(*curve, strict=True))
    share = size / size[-1]
    return float(np.trapezoid(f, share)), float(np.trapezoid(np.abs(1 - f), share))
