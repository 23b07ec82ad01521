"""The core circuit at edge level: connected, and judged on pairs that did not rank it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from curerec.circuits.edges import edge_scores
from curerec.circuits.faithfulness import Faithfulness, areas, judge_edges, minimality
from curerec.circuits.passes import check_halves
from curerec.circuits.selection import greedy_order, pruned, sizes_to_judge, smallest_faithful
from curerec.circuits.stability import bootstrap_means, paired_overlap
from curerec.circuits.wiring import wiring_of
from curerec.prompts.encoding import Prompts
from curerec.records import EdgeCircuit


def find_edges(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    scorer: str = "atp_ig",
    options: dict[str, Any] | None = None,
    threshold: float = 0.9,
    draws: int = 50,
    sizes: int = 24,
    details: bool = False,
    batch_size: int = 16,
    seed: int = 0,
) -> EdgeCircuit:
    """Score all edges and choose the smallest faithful connected circuit on a grid of sizes.

    The same halves of the pairs rank and judge as in :func:`curerec.circuits.core.find_core` with the same
    seed.

    Args:
        model, clean, corrupt, answers, threshold, batch_size, seed: as for ``find_core``.
        scorer, options: ``atp``, ``atp_ig`` or ``relp`` of :func:`curerec.circuits.edges.edge_scores`.
        draws: bootstrap resamples for the overlap of the circuit.
        sizes: at most so many sizes are judged.
        details: also drop-one effects, one pass an edge of the circuit.

    Raises:
        PromptError: fewer than two pairs, pairs that do not align, or none that moves the answer.

    Source: METHOD sections 3 and 4; Hanna et al. 2024 (greedy search).
    """
    check_halves(clean)
    found = edge_scores(
        model, clean, corrupt, answers, scorer=scorer, batch_size=batch_size, **(options or {})
    )
    wiring, total = wiring_of(model), len(found.source)
    rng = np.random.default_rng([seed, 41])
    order = rng.permutation(len(clean))
    rank_half, judge_half = order[: len(order) // 2], order[len(order) // 2 :]
    greedy = list(greedy_order(found.values[rank_half].mean(0), wiring))
    asked = sizes_to_judge(total, most=sizes)
    sets = [pruned(greedy[:n], wiring) for n in asked]
    judge = judge_edges(
        model, clean.take(judge_half), corrupt.take(judge_half), answers, batch_size=batch_size
    )
    f = Faithfulness(judge, total)
    curve = f.curve(sets)
    at = smallest_faithful(curve, threshold)
    core = sets[at]
    means = bootstrap_means(found.values, draws=draws, rng=rng)
    member = np.zeros(means.shape, bool)
    for k, mean in enumerate(means):
        member[k, list(pruned(list(islice(greedy_order(mean, wiring), asked[at])), wiring))] = True
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
        jaccard=paired_overlap(member),
        scorer=scorer,
        cpr=cpr,
        cmd=cmd,
        minimality=tuple(float(v) for v in minimality(f, core)) if details else (),
        notes=found.cost.notes(),
    )
