"""The core circuit: smallest faithful prefix of the ranked modules, and how stable it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from curerec.circuits.patching import atp, exact, patched_margins
from curerec.errors import PromptError
from curerec.prompts.encoding import Prompts
from curerec.records import Circuit

TOP_EXACT = 20  # modules re-scored exactly, plus as many at random (METHOD section 3)


def faithfulness(
    full: Float[np.ndarray, " n"],
    empty: Float[np.ndarray, " n"],
    kept: Float[np.ndarray, "*sets n"],
    *,
    axis: int | None = None,
) -> Float[np.ndarray, "*sets"] | float:
    """f(C) = (m(C) - m(empty)) / (m(full) - m(empty)), of mean margins.

    Args:
        full: margins of the clean run, [n].
        empty: margins with every module patched, [n].
        kept: margins with everything outside C patched, [..., n].

    Source: METHOD section 4.
    """
    gap = float(full.mean() - empty.mean())
    value = (kept.mean(-1) - empty.mean()) / gap if abs(gap) > 1e-9 else np.full(kept.shape[:-1], np.nan)
    return value if axis is not None or np.ndim(value) else float(value)


def ranking(scores: Float[np.ndarray, "n modules"]) -> Int[np.ndarray, " modules"]:
    """Modules by falling |mean score|, int [modules]."""
    return np.argsort(-np.abs(scores.mean(0)), kind="stable")


def find_core(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    threshold: float = 0.9,
    counts: dict[str, int] | None = None,
    draws: int = 200,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Circuit:
    """Score all modules and choose the core circuit.

    Modules are ranked on one half of the pairs and the prefix is judged on the other half: a circuit that is
    faithful only to the pairs that chose it is none. The top of the ranking and a random sample are re-scored
    exactly, so that the approximation's error is in the record.

    Args:
        model: decoder of a known family, in eval mode.
        clean, corrupt: aligned prompts, [n].
        answers: token ids of (no, yes).
        threshold: smallest faithfulness accepted.
        counts: numbers about the pairs that the record should hold.
        draws: bootstrap resamples for the overlap of the circuit.
        batch_size: pairs a pass.
        seed: of the halves and resamples.
        progress: told (done, total).

    Raises:
        PromptError: fewer than two pairs, pairs that do not align, or none that moves the answer.

    Source: METHOD section 4.
    """
    if len(clean) < 2:
        raise PromptError(
            "fewer than two pairs", where="circuit", mend="One half of the pairs ranks, one judges"
        )
    scores, names = atp(model, clean, corrupt, answers, batch_size=batch_size)
    rng = np.random.default_rng([seed, 41])
    order = rng.permutation(len(clean))
    rank_half, judge_half = order[: len(order) // 2], order[len(order) // 2 :]
    ranked = ranking(scores[rank_half])
    everything = set(names)
    sizes = _sizes(len(names))
    sets = [everything - {names[k] for k in ranked[:size]} for size in sizes]
    judge_clean, judge_corrupt = clean.take(judge_half), corrupt.take(judge_half)
    margins = patched_margins(model, judge_clean, judge_corrupt, answers, sets, batch_size=batch_size)
    full, empty = margins[-1], margins[0]
    curve = faithfulness(full, empty, margins, axis=0)
    if np.isnan(curve).any():
        raise PromptError(
            "none of the pairs moved the answer", where="circuit", mend="Use other or more pairs"
        )
    at = int(np.argmax(np.asarray(curve) >= threshold))
    size = sizes[at]
    core = tuple(int(k) for k in ranked[:size])
    outside = patched_margins(
        model, judge_clean, judge_corrupt, answers, [{names[k] for k in core}], batch_size=batch_size
    )
    sample = np.unique(np.r_[ranked[:TOP_EXACT], rng.permutation(len(names))[:TOP_EXACT]])
    rescored = np.full(len(names), np.nan, np.float32)
    rescored[sample] = exact(
        model, judge_clean, judge_corrupt, answers, [names[k] for k in sample], batch_size=batch_size
    ).mean(0)
    moved = np.abs(full - empty) > 1e-3
    pairs = {
        **(counts or {}),
        "kept": len(clean),
        "judged": len(judge_half),
        "moved": int(moved.sum()),
        "flipped": int(((full > 0) != (empty > 0)).sum()),
    }
    return Circuit(
        modules=names,
        scores=scores,
        exact=rescored,
        core=core,
        curve=tuple((s, float(f)) for s, f in zip(sizes, np.asarray(curve), strict=True)),
        faithfulness=float(np.asarray(curve)[at]),
        completeness=1 - float(faithfulness(full, empty, outside[0])),
        jaccard=bootstrap_jaccard(scores, size, draws=draws, rng=rng),
        scorer="atp",
        pairs=pairs,
    )


def _sizes(n: int) -> list[int]:
    """Circuit sizes to judge: all of a small model's, a geometric grid of a large one's."""
    if n <= 48:
        return list(range(n + 1))
    return sorted({0, n, *np.unique(np.geomspace(1, n, 32).round().astype(int)).tolist()})


def bootstrap_jaccard(
    scores: Float[np.ndarray, "n modules"], size: int, *, draws: int, rng: np.random.Generator
) -> float:
    """Mean overlap |A & B| / |A | B| of the top ``size`` modules over pairs of bootstrap resamples."""
    n = len(scores)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
    means = np.abs(weights @ scores)
    member = np.zeros(means.shape, bool)
    np.put_along_axis(member, np.argsort(-means, axis=1)[:, :size], True, axis=1)
    a, b = member[::2], member[1::2]
    both = min(len(a), len(b))
    a, b = a[:both], b[:both]
    union = (a | b).sum(1)
    return float(np.mean(np.where(union > 0, (a & b).sum(1) / np.maximum(union, 1), 1.0)))
