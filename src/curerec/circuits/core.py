"""The core circuit: smallest faithful prefix of the ranked modules, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from curerec.circuits import DEFAULT, SCORERS
from curerec.circuits.activations import sites_of
from curerec.circuits.counterfactuals import outcomes
from curerec.circuits.faithfulness import (
    Faithfulness,
    areas,
    completeness,
    faithfulness,
    judge_modules,
    knockouts,
    minimality,
)
from curerec.circuits.passes import Cost, Scores, check_halves
from curerec.circuits.patching import exact
from curerec.circuits.selection import ranking, selecting, sizes_to_judge, smallest_prefix
from curerec.circuits.stability import (
    STABLE,
    Granularity,
    agreement,
    bootstrap_intervals,
    bootstrap_jaccard,
    chance_jaccard,
    settle,
)
from curerec.errors import ConfigError
from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.records import Circuit

TOP_EXACT = 20  # modules re-scored exactly, plus as many heads and as many MLPs at random (METHOD section 3)
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
    select: str = "faithful",
    trust: bool = True,
    counts: dict[str, int] | None = None,
    draws: int = 200,
    details: bool = False,
    found: Scores | None = None,
    among: Collection[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Circuit:
    """Score all modules and choose the core circuit.

    Modules are ranked on one half of the pairs and the prefix is judged on the other half: a circuit that is
    faithful only to the pairs that chose it is none. The top of the ranking and a random sample of heads and
    of MLPs are re-scored exactly on the ranking half; where the scorer's order of them agrees with the exact
    one by less than Spearman 0.8, or finds less than 0.8 of the largest, the exact scores take its place, and
    the record says so. Where the sample is not the whole model, heads and MLPs must agree each by themselves.

    Args:
        model: decoder of a known family.
        clean, corrupt: aligned prompts, [n].
        answers: token ids of (no, yes).
        scorer: key of :data:`curerec.circuits.SCORERS`.
        options: of the scorer.
        granularity: ``block`` takes or leaves all heads of a layer together.
        threshold: smallest faithfulness accepted.
        select: ``faithful``: the smallest prefix of the ranking that reaches ``threshold``, see
            :func:`curerec.circuits.selection.smallest_prefix`. ``top:K``: the K modules (blocks) of largest
            |mean score| on the ranking half. ``threshold:X``: those of at least X logits.
        trust: re-score a sample exactly, and let exact scores rank where the scorer disagrees with them.
            False: the scorer itself ranks, whatever it is worth: to compare scorers, which else all are exact
            ones.
        counts: numbers about the pairs that the record should hold; of ``moved`` and ``flipped`` those given
            stand, without them they are of the judging half.
        draws: bootstrap resamples for the overlap of the circuit and the intervals of its scores.
        details: also drop-one effects and knock-outs, which cost one and some dozens of passes a module of
            the circuit.
        found: scores of these pairs by this scorer, where they are at hand; None: they are taken.
        among: modules that the circuit is sought among; the others are part of it whatever they do, are
            never patched and stand in none of its lists (``fixed`` counts them). None: all.
        batch_size: pairs a pass.
        seed: of the halves and resamples.
        progress: told (done, total).

    Raises:
        ConfigError: unknown scorer, or way to select.
        PromptError: fewer than two pairs, pairs that do not align, or none that moves the answer.

    Source: METHOD section 4.
    """
    if scorer not in SCORERS:
        raise ConfigError(
            "is no scorer", where=f"scorer {scorer!r}", mend=f"Choose from {', '.join(SCORERS)}"
        )
    way = selecting(select)
    check_halves(clean)
    if found is None:
        found = SCORERS[scorer](
            model, clean, corrupt, answers, among=among, batch_size=batch_size, **(options or {})
        )
        found = replace(found, values=parallel.as_first(found.values))
    elif among is not None:
        found = found.among(among)
    names = found.names
    fixed = len(sites_of(model).names) - len(names)
    rng = np.random.default_rng([seed, 41])
    order = rng.permutation(len(clean))
    rank_half, judge_half = order[: len(order) // 2], order[len(order) // 2 :]
    members = _members(names, granularity)
    basis, rescored, agree, notes = _trusted(
        found,
        model,
        clean.take(rank_half),
        corrupt.take(rank_half),
        answers,
        rank_half,
        rng,
        batch_size,
        trust,
    )
    grouped = np.stack([basis[:, m].sum(1) for m in members], 1)
    ranking_scores = grouped[rank_half] if len(grouped) == len(clean) else grouped
    ranked, chosen = ranking(ranking_scores), way.first(ranking_scores)
    judging = Cost()
    judge = judge_modules(
        model,
        clean.take(judge_half),
        corrupt.take(judge_half),
        answers,
        names,
        batch_size=batch_size,
        cost=judging,
    )
    f = Faithfulness(judge, len(names))

    def first(size: int) -> list[int]:
        return [k for g in ranked[:size] for k in members[g]]

    def judged(sizes: Sequence[int]) -> Sequence[tuple[int, float]]:
        return f.curve([first(size) for size in sizes])

    sizes = sizes_to_judge(len(members))
    if chosen is None:
        sizes, curve, at = smallest_prefix(judged, sizes, threshold)
    else:
        sizes = sorted({*sizes, len(chosen)})
        curve, at = tuple(judged(sizes)), sizes.index(len(chosen))
    core = tuple(first(sizes[at]))
    low, high = bootstrap_intervals(found.values, draws=draws, seed=seed)
    cpr, cmd = areas(curve)
    seen = {k: v for k, v in outcomes(f.full, f.empty).items() if k != "fell"}
    pairs = {**seen, **(counts or {}), "kept": len(clean), "judged": len(judge_half)}
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
        completeness=completeness(f, core),
        jaccard=bootstrap_jaccard(
            grouped,
            sizes[at],
            draws=draws,
            rng=rng,
            threshold=way.value if way.kind == "threshold" else None,
        ),
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
        notes=(*found.cost.notes(), *judging.notes(" while judging"), *notes),
        order=tuple(first(len(members))),
        jaccard_chance=chance_jaccard(len(members), sizes[at]),
        fixed=fixed,
    )


def stable_core(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    start: int = 64,
    least: float = STABLE,
    **find: Any,
) -> Circuit:
    """A core circuit that resamples do not overturn, if need be from more pairs or of coarser modules.

    Begins with the first ``start`` pairs and doubles them while the overlap over resamples is below
    ``least``, or too near that of random circuits of its size; when there are no more, takes all heads of a
    layer as one module, unless so many modules were asked for. Each step is in the notes
    (:func:`curerec.circuits.stability.settle`).

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

    coarser = selecting(find.get("select", "faithful")).kind == "faithful"
    circuit, said = settle(of, len(clean), start=start, least=least, coarser=coarser)
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
    trust: bool,
) -> tuple[np.ndarray, np.ndarray, dict[str, float], tuple[str, ...]]:
    """Scores to rank by, exact mean scores, agreement of the two, and what to say about it.

    The scores to rank by are all of the scorer's, or those of the ranking half with the re-scored modules
    replaced by their exact scores.
    """
    scores = found.values
    mean = np.full(len(found.names), np.nan, np.float32)
    if not trust:
        return scores, mean, {}, ()
    ranked = ranking(scores[rows])
    head = np.asarray([".head." in name for name in found.names], dtype=bool)
    # A scorer may be blind to one kind: of heads and MLPs alike as many are drawn.
    drawn = rng.permutation(len(found.names))
    drawn = np.r_[drawn[head[drawn]][:TOP_EXACT], drawn[~head[drawn]][:TOP_EXACT]]
    sample = np.unique(np.r_[ranked[:TOP_EXACT], drawn])
    chosen = [found.names[k] for k in sample]
    exactly = (
        scores[np.ix_(rows, sample)]
        if found.scorer == "exact"
        else exact(model, clean, corrupt, answers, chosen, batch_size=batch_size)
    )
    guess, truth = scores[np.ix_(rows, sample)].mean(0), exactly.mean(0)
    mean[sample] = truth
    agree = agreement(guess, truth, top=TOP_EXACT)
    doubts = _doubts(agree, "")
    if len(sample) < len(found.names):
        for kind, mine in (("head", head[sample]), ("mlp", ~head[sample])):
            own = agreement(guess[mine], truth[mine], top=TOP_EXACT)
            if np.isnan(own["spearman"]) and mine.sum() >= 3 and np.ptp(truth[mine]) > 1e-12:
                own |= {"spearman": 0.0, "top_recall": 0.0}  # it gives all of this kind one score
            agree |= {f"{kind}_{name}": value for name, value in own.items()}
            doubts += _doubts(own, {"head": " of heads", "mlp": " of MLPs"}[kind])
    # The scorer ``adapter`` asks another question than a patch does; its order stands.
    if not doubts or found.scorer == "adapter":
        return scores, mean, agree, ()
    basis = scores[rows].copy()
    basis[:, sample] = exactly
    note = f"{found.scorer} {', and '.join(doubts)} only: the exact scores of {len(sample)} modules rank them"
    return basis, mean, agree, (note,)


def _doubts(agree: dict[str, float], of: str) -> list[str]:
    """Why a scorer does not rank; empty where it agrees with exact patching, or that cannot be told (nan)."""
    if not (agree["spearman"] < TRUSTED or agree["top_recall"] < TRUSTED):
        return []
    return [
        f"agrees with exact patching{of} by Spearman {agree['spearman']:.2f} and finds "
        f"{agree['top_recall']:.0%} of the largest"
    ]


__all__ = ["bootstrap_jaccard", "faithfulness", "find_core", "ranking", "stable_core"]
