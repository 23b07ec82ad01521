"""The core circuit: smallest faithful prefix of the ranked modules, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from curerec.circuits import DEFAULT, SCORERS
from curerec.circuits.faithfulness import (
    Faithfulness,
    areas,
    faithfulness,
    judge_modules,
    knockouts,
    minimality,
)
from curerec.circuits.passes import Scores, check_halves
from curerec.circuits.patching import exact
from curerec.circuits.selection import ranking, sizes_to_judge, smallest_faithful
from curerec.circuits.stability import (
    Granularity,
    agreement,
    bootstrap_intervals,
    bootstrap_jaccard,
    settle,
)
from curerec.errors import ConfigError
from curerec.prompts.encoding import Prompts
from curerec.records import Circuit

TOP_EXACT = 20  # modules re-scored exactly, plus as many at random (METHOD section 3)
TRUSTED = 0.8  # Spearman with, or recall of, exact patching below which exact scores decide the top


def find_core(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    scorer: str = DEFAULT,
    options: dict[str, Any] | None = None,
    granularity: Granularity = "head_mlp",
    threshold: float = 0.9,
    counts: dict[str, int] | None = None,
    draws: int = 200,
    details: bool = False,
    found: Scores | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Circuit:
    """Score all modules and choose the core circuit.

    Modules are ranked on one half of the pairs and the prefix is judged on the other half: a circuit that is
    faithful only to the pairs that chose it is none. The top of the ranking and a random sample are re-scored
    exactly on the ranking half; where the scorer's order of them agrees with the exact one by less than
    Spearman 0.8, or finds less than 0.8 of the largest, the exact scores take its place, and the record says
    so.

    Args:
        model: decoder of a known family.
        clean, corrupt: aligned prompts, [n].
        answers: token ids of (no, yes).
        scorer: key of :data:`curerec.circuits.SCORERS`.
        options: of the scorer.
        granularity: ``block`` takes or leaves all heads of a layer together.
        threshold: smallest faithfulness accepted.
        counts: numbers about the pairs that the record should hold.
        draws: bootstrap resamples for the overlap of the circuit and the intervals of its scores.
        details: also drop-one effects and knock-outs, which cost one and some dozens of passes a module of
            the circuit.
        found: scores of these pairs by this scorer, where they are at hand; None: they are taken.
        batch_size: pairs a pass.
        seed: of the halves and resamples.
        progress: told (done, total).

    Raises:
        ConfigError: unknown scorer.
        PromptError: fewer than two pairs, pairs that do not align, or none that moves the answer.

    Source: METHOD section 4.
    """
    if scorer not in SCORERS:
        raise ConfigError(
            "is no scorer", where=f"scorer {scorer!r}", mend=f"Choose from {', '.join(SCORERS)}"
        )
    check_halves(clean)
    if found is None:
        found = SCORERS[scorer](model, clean, corrupt, answers, batch_size=batch_size, **(options or {}))
    names = found.names
    rng = np.random.default_rng([seed, 41])
    order = rng.permutation(len(clean))
    rank_half, judge_half = order[: len(order) // 2], order[len(order) // 2 :]
    members = _members(names, granularity)
    basis, rescored, agree, notes = _trusted(
        found, model, clean.take(rank_half), corrupt.take(rank_half), answers, rank_half, rng, batch_size
    )
    grouped = np.stack([basis[:, m].sum(1) for m in members], 1)
    ranked = ranking(grouped[rank_half] if len(grouped) == len(clean) else grouped)
    sizes = sizes_to_judge(len(members))
    sets = [[k for g in ranked[:size] for k in members[g]] for size in sizes]
    judge = judge_modules(
        model, clean.take(judge_half), corrupt.take(judge_half), answers, names, batch_size=batch_size
    )
    f = Faithfulness(judge, len(names))
    curve = f.curve(sets)
    at = smallest_faithful(curve, threshold)
    core = tuple(sets[at])
    low, high = bootstrap_intervals(found.values, draws=draws, seed=seed)
    cpr, cmd = areas(curve)
    pairs = {
        **(counts or {}),
        "kept": len(clean),
        "judged": len(judge_half),
        "moved": int((np.abs(f.full - f.empty) > 1e-3).sum()),
        "flipped": int(((f.full > 0) != (f.empty > 0)).sum()),
    }
    cost = {"forward_equivalents": found.cost.forward_equivalents}
    if found.cost.peak_bytes is not None:
        cost["peak_bytes"] = found.cost.peak_bytes
    return Circuit(
        modules=names,
        scores=found.values.astype(np.float32),
        exact=rescored,
        core=core,
        curve=curve,
        faithfulness=curve[at][1],
        completeness=1 - float(f.of([f.complement(core)])[0]),
        jaccard=bootstrap_jaccard(grouped, sizes[at], draws=draws, rng=rng),
        scorer=scorer,
        pairs=pairs,
        low=low,
        high=high,
        agreement=agree,
        cpr=cpr,
        cmd=cmd,
        minimality=tuple(float(v) for v in minimality(f, core)) if details else (),
        knockouts=knockouts(f, core, seed=seed) if details else {},
        granularity=granularity,
        cost=cost,
        notes=(*found.cost.notes(), *notes),
        order=tuple(sets[-1]),
    )


def stable_core(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    start: int = 64,
    least: float = 0.8,
    **find: Any,
) -> Circuit:
    """A core circuit that resamples do not overturn, if need be from more pairs or of coarser modules.

    Begins with the first ``start`` pairs and doubles them while the overlap over resamples is below
    ``least``; when there are no more, takes all heads of a layer as one module. Each step is in the notes.

    Args:
        model, clean, corrupt, answers: as for :func:`find_core`; the pairs are the most that may be used.
        start: pairs to begin with.
        least: overlap that is enough.
        find: further arguments of :func:`find_core`.
    """

    def of(pairs: int, granularity: Granularity) -> Circuit:
        index = np.arange(pairs)
        return find_core(
            model, clean.take(index), corrupt.take(index), answers, **{**find, "granularity": granularity}
        )

    circuit, said = settle(of, len(clean), start=start, least=least)
    return replace(circuit, notes=(*circuit.notes, *said))


def _members(names: tuple[str, ...], granularity: Granularity) -> list[list[int]]:
    """Indices of the modules that are chosen or left together."""
    if granularity == "head_mlp":
        return [[k] for k in range(len(names))]
    blocks: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        blocks.setdefault(name.split(".head.")[0], []).append(k)
    return list(blocks.values())


def _trusted(
    found: Scores,
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    rows: np.ndarray,
    rng: np.random.Generator,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, float], tuple[str, ...]]:
    """Scores to rank by, exact mean scores, agreement of the two, and what to say about it.

    The scores to rank by are all of the scorer's, or those of the ranking half with the re-scored modules
    replaced by their exact scores.
    """
    scores = found.values
    ranked = ranking(scores[rows])
    sample = np.unique(np.r_[ranked[:TOP_EXACT], rng.permutation(len(found.names))[:TOP_EXACT]])
    chosen = [found.names[k] for k in sample]
    exactly = (
        scores[np.ix_(rows, sample)]
        if found.scorer == "exact"
        else exact(model, clean, corrupt, answers, chosen, batch_size=batch_size)
    )
    mean = np.full(len(found.names), np.nan, np.float32)
    mean[sample] = exactly.mean(0)
    agree = agreement(scores[np.ix_(rows, sample)].mean(0), exactly.mean(0), top=TOP_EXACT)
    # The scorer ``adapter`` asks another question than a patch does; its order stands.
    doubtful = agree["spearman"] < TRUSTED or agree["top_recall"] < TRUSTED
    if not doubtful or found.scorer == "adapter":
        return scores, mean, agree, ()
    basis = scores[rows].copy()
    basis[:, sample] = exactly
    note = (
        f"{found.scorer} agrees with exact patching by Spearman {agree['spearman']:.2f} and finds "
        f"{agree['top_recall']:.0%} of the largest only: the exact scores of {len(sample)} modules rank them"
    )
    return basis, mean, agree, (note,)


__all__ = ["bootstrap_jaccard", "faithfulness", "find_core", "ranking", "stable_core"]
