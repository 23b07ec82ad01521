"""The core circuit at edge level: connected, and judged on pairs that did not rank it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from curerec.circuits.edges import EdgeScores, edge_scores
from curerec.circuits.faithfulness import Faithfulness, areas, judge_edges, knockouts
from curerec.circuits.passes import Cost, check_halves
from curerec.circuits.selection import (
    JUDGED,
    greedy_order,
    halves,
    pruned,
    selecting,
    sizes_to_judge,
    smallest_prefix,
)
from curerec.circuits.stability import (
    STABLE,
    Granularity,
    bootstrap_intervals,
    bootstrap_means,
    chance_jaccard,
    paired_overlap,
    settle,
)
from curerec.circuits.wiring import Wiring, of_blocks, wiring_of
from curerec.prompts.encoding import Prompts
from curerec.records import EdgeCircuit

SCORER, BATCH = "atp_ig", 16  # where nothing else is asked for
DROPPED = 24  # edges of the circuit whose loss is tried one by one: each takes a run of the judging pairs
FEW = {"draws": 5, "candidates": 5}  # knock-outs: runs of edges take longer than runs of modules


def find_edges(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    scorer: str = SCORER,
    options: dict[str, Any] | None = None,
    granularity: Granularity = "head_mlp",
    threshold: float = 0.9,
    select: str = "faithful",
    draws: int = 200,
    sizes: int = 24,
    details: bool = False,
    found: EdgeScores | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
) -> EdgeCircuit:
    """Score all edges and choose the smallest faithful connected circuit.

    Half of the pairs ranks and half judges; of more than 128 pairs 64 judge, for that is where the time goes
    (:data:`curerec.circuits.selection.JUDGED`).

    Args:
        model, clean, corrupt, answers, threshold, batch_size, seed: as for ``find_core``.
        scorer, options: ``atp``, ``atp_ig`` or ``relp`` of :func:`curerec.circuits.edges.edge_scores`.
        granularity: ``block`` takes or leaves the edges between two layers' heads together (queries, keys and
            values apart).
        select: ``faithful``: the smallest faithful prefix of the greedy search. ``top:K``: its first K edges
            (edges of blocks). ``threshold:X``: all edges whose |mean score| on the ranking half is at least X
            logits. What lies on no path from the prompt to the answer is left out of each.
        draws: bootstrap resamples for the overlap of the circuit and the intervals of its scores.
        sizes: at most so many sizes are judged at first; bisection goes on between two of them, see
            :func:`curerec.circuits.selection.smallest_prefix`.
        details: also drop-one effects of the :data:`DROPPED` edges of largest score, one pass each, and
            knock-outs, some dozens.
        found: scores of these pairs by this scorer, where they are at hand; None: they are taken.

    Raises:
        ConfigError: unknown way to select, or a scorer that has no edges.
        PromptError: fewer than two pairs, pairs that do not align, or none that moves the answer.

    Source: METHOD sections 3 and 4; Hanna et al. 2024 (greedy search).
    """
    way = selecting(select)
    check_halves(clean)
    if found is None:
        found = edge_scores(
            model, clean, corrupt, answers, scorer=scorer, batch_size=batch_size, **(options or {})
        )
    wiring, total = wiring_of(model), len(found.source)
    graph, member = _graph(wiring, granularity)
    grouped = found.values if graph is wiring else np.stack([found.values[:, m].sum(1) for m in member], 1)
    rank_half, judge_half = halves(len(clean), seed, judged=JUDGED)
    rng = np.random.default_rng([seed, 53])
    greedy = list(greedy_order(grouped[rank_half].mean(0), graph))
    judging = Cost()
    judge = judge_edges(
        model,
        clean.take(judge_half),
        corrupt.take(judge_half),
        answers,
        batch_size=batch_size,
        cost=judging,
    )
    f = Faithfulness(judge, total)

    def edges_of(groups: Sequence[int]) -> list[int]:
        return [int(k) for g in pruned(groups, graph) for k in member[g]]

    def judged(lengths: Sequence[int]) -> Sequence[tuple[int, float]]:
        return f.curve([edges_of(greedy[:n]) for n in lengths])

    asked = sizes_to_judge(len(member), most=sizes)
    if way.kind == "faithful":
        asked, curve, at = smallest_prefix(judged, asked, threshold)
        length, picked = asked[at], greedy[: asked[at]]
    else:
        curve = tuple(judged(asked))
        length = min(int(way.value), len(member))
        picked = greedy[:length] if way.kind == "top" else list(way.first(grouped[rank_half]) or ())
    core = tuple(edges_of(picked))
    kept, without = f.of([core, f.complement(core)])
    means = bootstrap_means(grouped, draws=draws, rng=rng)
    chosen = np.zeros(means.shape, bool)
    for k, mean in enumerate(means):
        if way.kind == "threshold":
            found_anew = list(way.first(mean[None]) or ())
        else:
            found_anew = list(islice(greedy_order(mean, graph), length))
        chosen[k, list(pruned(found_anew, graph))] = True
    low, high = bootstrap_intervals(found.values, draws=draws, seed=seed)
    cpr, cmd = areas(curve)
    cost = {"forward_equivalents": found.cost.forward_equivalents}
    return EdgeCircuit(
        sources=found.sources,
        readers=found.readers,
        source=found.source,
        reader=found.reader,
        scores=found.values.astype(np.float32),
        core=core,
        curve=curve,
        faithfulness=float(kept),
        completeness=1 - float(without),
        jaccard=paired_overlap(chosen),
        scorer=scorer,
        cpr=cpr,
        cmd=cmd,
        minimality=_dropped(f, core, found.values.mean(0)) if details else (),
        granularity=granularity,
        notes=(*found.cost.notes(), *judging.notes(" while judging")),
        jaccard_chance=chance_jaccard(len(member), len(pruned(picked, graph))),
        low=low,
        high=high,
        knockouts=knockouts(f, core, seed=seed, **FEW) if details else {},
        cost=cost,
    )


def _dropped(f: Faithfulness, core: Sequence[int], mean: np.ndarray) -> tuple[float, ...]:
    """What is lost when each edge of a circuit alone is dropped; nan beyond the :data:`DROPPED` largest."""
    largest = sorted(range(len(core)), key=lambda at: -abs(mean[core[at]]))[:DROPPED]
    out, whole = np.full(len(core), np.nan), set(core)
    if largest:
        runs = f.of([whole, *(whole - {core[at]} for at in largest)])
        out[largest] = runs[0] - runs[1:]
    return tuple(float(v) for v in out)


def stable_edges(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    start: int = 128,
    least: float = STABLE,
    **find: Any,
) -> EdgeCircuit:
    """A circuit of edges that resamples do not overturn, if need be from more pairs or of coarser edges.

    As :func:`curerec.circuits.core.stable_core`: doubles the pairs while the overlap over resamples is below
    ``least``, or too near that of chance; when there are no more, takes all edges between two layers' heads
    as one. Each step is in the notes, and each pair is scored once.

    Args:
        model, clean, corrupt, answers: as for :func:`find_edges`; the pairs are the most that may be used.
        start: pairs to begin with.
        least: overlap that is enough.
        find: further arguments of :func:`find_edges`; ``details`` are of the circuit in the end alone.

    Returns:
        The circuit; ``len(circuit.scores)`` pairs were used.
    """
    details = find.pop("details", False)
    scoring = {"scorer": find.get("scorer", SCORER), "batch_size": find.get("batch_size", BATCH)}
    scored: EdgeScores | None = None

    def of(pairs: int, granularity: Granularity) -> EdgeCircuit:
        nonlocal scored
        index = np.arange(pairs)
        new = index if scored is None else index[len(scored.values) :]
        if len(new):
            more = edge_scores(
                model, clean.take(new), corrupt.take(new), answers, **scoring, **(find.get("options") or {})
            )
            scored = more if scored is None else scored.with_more(more)
        chosen = {**find, "granularity": granularity, "found": scored}
        return find_edges(model, clean.take(index), corrupt.take(index), answers, **chosen)

    coarser = selecting(find.get("select", "faithful")).kind == "faithful"
    circuit, said = settle(of, len(clean), start=start, least=least, coarser=coarser)
    circuit = replace(circuit, notes=(*circuit.notes, *said))
    if not details:
        return circuit
    index = np.arange(len(circuit.scores))
    _, judging = halves(len(index), find.get("seed", 0), judged=JUDGED)
    pair = clean.take(index[judging]), corrupt.take(index[judging])
    judge = judge_edges(model, *pair, answers, batch_size=scoring["batch_size"])
    f = Faithfulness(judge, len(circuit.source))
    return replace(
        circuit,
        minimality=_dropped(f, circuit.core, circuit.scores.mean(0)),
        knockouts=knockouts(f, circuit.core, seed=find.get("seed", 0), **FEW),
    )


def _graph(wiring: Wiring, granularity: Granularity) -> tuple[Wiring, list[np.ndarray]]:
    """The graph in which edges are chosen, and the edges of the model that each of its edges stands for."""
    source, reader = np.nonzero(wiring.mask)
    if granularity == "head_mlp":
        return wiring, list(np.arange(len(source))[:, None])
    blocks, source_block, reader_block = of_blocks(wiring)
    place = np.cumsum(blocks.mask).reshape(blocks.mask.shape) - 1
    owner = place[source_block[source], reader_block[reader]]
    return blocks, [np.flatnonzero(owner == g) for g in range(int(blocks.mask.sum()))]
