"""An imported circuit, judged in a recommender at hand."""

from __future__ import annotations

import numpy as np

from curerec.circuits.exchange import CircuitFile, Edge, Measures, Node, shape_of
from curerec.circuits.faithfulness import Faithfulness, Judge, judge_edges, judge_modules
from curerec.circuits.selection import JUDGED
from curerec.circuits.wiring import wiring_of
from curerec.errors import ModelError
from curerec.inspect_config import InspectConfig
from curerec.inspection import about, falling_pairs, stored
from curerec.opened import Opened


def judge_imported(opened: Opened, file: CircuitFile, config: InspectConfig | None = None) -> CircuitFile:
    """An imported circuit, with what its parts and its connections carry in this recommender.

    Measured are faithfulness and completeness of both, on pairs of validation prompts that had no say in the
    choice, also where it was made in this recommender with the same seed and pool (of fewer than two
    pools of prompts some had one); and, where ``config.units`` asks for it, what fine-tuning stored in each
    update unit. Of the file only the circuit itself is kept, with the scores and the order that it was chosen
    by; what else was measured there was measured of another model, and is left out.

    Args:
        opened: the recommender.
        file: from :func:`curerec.circuits.eap_ig.from_eap_ig` or ``exchange.read``.
        config: sizes, seed, corruption.

    Raises:
        ModelError: the circuit is of another model.
        PromptError: pairs cannot be made, or none moves the answer.
    """
    config = config or InspectConfig()
    model, answers = opened.recommender.model, opened.recommender.answers
    wiring = wiring_of(model)
    names = wiring.sources[1:]
    if shape_of(wiring, model.config.hidden_size) != file.shape or {n.name for n in file.nodes} != set(names):
        raise ModelError(
            "is of a model of another shape",
            where="circuit",
            mend="Give the recommender that it was found in, and its number of key/value heads",
        )
    rng = np.random.default_rng([config.seed, 97])
    # From the other end of the order in which `inspect` draws those that choose.
    pool = opened.split.valid.take(np.sort(rng.permutation(len(opened.split.valid))[-config.pool :]))
    pairs = falling_pairs(opened, pool, config, config.pairs, seed=config.seed)

    def measured(judge: Judge, total: int, core: set[int]) -> Measures:
        f = Faithfulness(judge, total)
        kept, without = f.of([core, f.complement(core)])
        return Measures(faithfulness=float(kept), completeness=1 - float(without))

    judge = judge_modules(model, pairs.clean, pairs.corrupt, answers, names, batch_size=config.batch_size)
    inside = {n.name for n in file.nodes if n.in_graph}
    of_nodes = measured(judge, len(names), {k for k, name in enumerate(names) if name in inside})
    of_edges, chosen = None, {(e.source, e.reader) for e in file.edges if e.in_graph}
    if chosen:
        few = pairs.take(np.arange(min(len(pairs.clean), JUDGED)))
        judge = judge_edges(model, few.clean, few.corrupt, answers, batch_size=config.batch_size)
        source, reader = np.nonzero(wiring.mask)
        joined = [(wiring.sources[s], wiring.readers[r]) for s, r in zip(source, reader, strict=True)]
        of_edges = measured(judge, len(joined), {k for k, pair in enumerate(joined) if pair in chosen})
    return CircuitFile(
        shape=file.shape,
        scorer=file.scorer,
        granularity=file.granularity,
        nodes=[Node(name=n.name, score=n.score, in_graph=n.in_graph, rank=n.rank) for n in file.nodes],
        nodes_measured=of_nodes,
        edges=[
            Edge(source=e.source, reader=e.reader, score=e.score, in_graph=e.in_graph) for e in file.edges
        ],
        edges_scorer=file.edges_scorer,
        edges_granularity=file.edges_granularity,
        edges_measured=of_edges,
        about={**about(opened, config), "faithfulness_asked": None, "select": "imported"},
        corruption=config.corruption,
        **(stored(opened, config) if config.units else {}),
        pairs={**pairs.counts, "kept": len(pairs.clean)},
        notes=[
            "imported: which parts and connections are in the circuit, their scores and their order are the "
            "file's; what they keep of the margin was measured on this recommender. All else that the file "
            "may have held was measured elsewhere and is left out"
        ],
    )
