"""The core circuit at edge level: connected, and judged on pairs that did not rank it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from curerec.circuits.edges import EdgeScores, edge_scores
from curerec.circuits.faithfulness import Faithfulness, areas, judge_edges, minimality
from curerec.circuits.passes import check_halves
from curerec.circuits.selection import (
    JUDGED,
    greedy_order,
    halves,
    pruned,
    sizes_to_judge,
    smallest_faithful,
)
from curerec.circuits.stability import Granularity, bootstrap_means, paired_overlap, settle
from curerec.circuits.wiring import Wiring, of_blocks, wiring_of
from curerec.prompts.encoding import Prompts
from curerec.records import EdgeCircuit

SCORER, BATCH = "atp_ig", 16  # where nothing else is asked for


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
    draws: int = 50,
    sizes: int = 24,
    details: bool = False,
    found: EdgeScores | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
) -> EdgeCircuit:
    """Score all edges and choose the smallest faithful connected circuit on a grid of sizes.

    Half of the pairs ranks and half judges; of more than 128 pairs 64 judge, for that is where the time goes
    (:data:`curerec.circuits.selection.JUDGED`).

    Args:
        model, clean, corrupt, answers, threshold, batch_size, seed: as for ``find_core``.
        scorer, options: ``atp``, ``atp_ig`` or ``relp`` of :func:`curerec.circuits.edges.edge_scores`.
        granularity: ``block`` takes or leaves the edges between two layers' heads together (queries, keys and
            values apart).
        draws: bootstrap resamples for the overlap of the circuit.
        sizes: at most so many sizes are judged.
        details: also drop-one effects, one pass an edge of the circuit.
        found: scores of these pairs by this scorer, where they are at hand; None: they are taken.

    Raises:
        PromptError: fewer than two pairs, pairs that do not align, or none that moves the answer.

    Source: METHOD sections 3 and 4; Hanna et al. 2024 (greedy search).
    """
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
    asked = sizes_to_judge(len(member), most=sizes)
    sets = [[int(k) for g in pruned(greedy[:n], graph) for k in member[g]] for n in asked]
    judge = judge_edges(
        model, clean.take(judge_half), corrupt.take(judge_half), answers, batch_size=batch_size
    )
    f = Faithfulness(judge, total)
    curve = f.curve(sets)
    at = smallest_faithful(curve, threshold)
    core = tuple(sets[at])
    means = bootstrap_means(grouped, draws=draws, rng=rng)
    chosen = np.zeros(means.shape, bool)
    for k, mean in enumerate(means):
        chosen[k, list(pruned(list(islice(greedy_order(mean, graph), asked[at])), graph))] = True
    cpr, cmd = areas(curve)
    return EdgeCircuit(
        sources=found.sources,
        readers=found.readers,
        source=found.source,
        reader=found.reader,
        scores=found.values.astype(np.float32),
        core=core,
        curve=curve,
        faithfulness=curve[at][1],
        completeness=1 - float(f.of([f.complement(core)])[0]),
        jaccard=paired_overlap(chosen),
        scorer=scorer,
        cpr=cpr,
        cmd=cmd,
        minimality=tuple(float(v) for v in minimality(f, core)) if details else (),
        granularity=granularity,
        notes=found.cost.notes(),
    )


def stable_edges(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    start: int = 128,
    least: float = 0.8,
    **find: Any,
) -> EdgeCircuit:
    """A circuit of edges that resamples do not overturn, if need be from more pairs or of coarser edges.

    As :func:`curerec.circuits.core.stable_core`: doubles the pairs while the overlap over resamples is below
    ``least``; when there are no more, takes all edges between two layers' heads as one. Each step is in the
    notes, and each pair is scored once.

    Args:
        model, clean, corrupt, answers: as for :func:`find_edges`; the pairs are the most that may be used.
        start: pairs to begin with.
        least: overlap that is enough.
        find: further arguments of :func:`find_edges`.

    Returns:
        The circuit; ``len(circuit.scores)`` pairs were used.
    """

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

    circuit, said = settle(of, len(clean), start=start, least=least)
    return replace(circuit, notes=(*circuit.notes, *said))


def _graph(wiring: Wiring, granularity: Granularity) -> tuple[Wiring, list[np.ndarray]]:
    """The graph in which edges are chosen, and the edges of the model that each of its edges stands for."""
    source, reader = np.nonzero(wiring.mask)
    if granularity == "head_mlp":
        return wiring, list(np.arange(len(source))[:, None])
    blocks, source_block, reader_block = of_blocks(wiring)
    place = np.cumsum(blocks.mask).reshape(blocks.mask.shape) - 1
    owner = place[source_block[source], reader_block[reader]]
    return blocks, [np.flatnonzero(owner == g) for g in range(int(blocks.mask.sum()))]
