"""The circuit of a saved recommender, examined from all sides: what ``curerec circuit`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from curerec.aligned import Aligned, aligned, falling
from curerec.circuits import SCORERS
from curerec.circuits.activations import sites_of
from curerec.circuits.compact import fewest_parts
from curerec.circuits.core import find_core, stable_core
from curerec.circuits.edge_core import SCORER as EDGES_DEFAULT
from curerec.circuits.edge_core import stable_edges
from curerec.circuits.edges import EDGE_SCORERS
from curerec.circuits.exchange import (
    CircuitFile,
    CompactSet,
    NecessarySet,
    Overlap,
    Reads,
    shape_of,
    to_file,
)
from curerec.circuits.faithfulness import Faithfulness, Judge, judge_edges, judge_modules
from curerec.circuits.matters import matters
from curerec.circuits.necessary import necessary
from curerec.circuits.passes import Cost
from curerec.circuits.reading import attention_reading
from curerec.circuits.selection import JUDGED, halves, selecting
from curerec.circuits.stability import overlaps
from curerec.circuits.stored import stored_in_units
from curerec.circuits.wiring import wiring_of
from curerec.errors import PromptError
from curerec.inspect_config import InspectConfig
from curerec.machine import machine, peak_memory_bytes, versions
from curerec.models import device
from curerec.opened import Opened
from curerec.progress import Clock
from curerec.prompts.encoding import Encoder, Prompts, queries
from curerec.prompts.templates import TEMPLATES
from curerec.recommender import storage
from curerec.recommender.units import units_of
from curerec.records import Circuit, Examples

Level = Literal["parts", "connections"]


def inspect(
    opened: Opened,
    config: InspectConfig | None = None,
    *,
    groups: Mapping[str, Mapping[str, int]] | None = None,
    clock: Clock | None = None,
) -> CircuitFile:
    """Find the circuit of a recommender, judge it, and say what its heads read.

    Pairs and choices are of validation prompts. Test prompts are used once, to measure what the test AUC
    loses when the circuit is knocked out; nothing depends on it.

    Args:
        opened: from :func:`curerec.opened.open_recommender`.
        config: see :class:`InspectConfig`.
        groups: update units of each module by role, from :func:`curerec.circuits.by_role.groups_of_record`.
        clock: stages and their seconds.

    Raises:
        PromptError: pairs cannot be made, or none moves the answer.
        ConfigError: unknown scorer, or way to select.
        ModelError: rank-one terms of a recommender without an adapter.
    """
    config, clock = config or InspectConfig(), clock or Clock()
    model, answers = opened.recommender.model, opened.recommender.answers
    for way in (config.select, config.select_edges):
        selecting(way)  # refused before anything is run
    if config.units:
        units_of(model, config.units)  # likewise
    rng = np.random.default_rng([config.seed, 97])

    def drawn(part: Examples, n: int) -> Examples:
        return part.take(np.sort(rng.permutation(len(part))[:n]))

    with clock.stage("counterfactuals"):
        pool = drawn(opened.split.valid, config.pool)
        examples = drawn(opened.split.test, config.test)  # also of none: what is drawn later stays the same
        test, said = _test_pairs(opened, examples, config) if config.test else (None, [])
        most = max(config.edges, config.edges_most)
        # Pairs by PageRank are the ones that fall most, so that more of them are others.
        more = most if config.edges and config.corruption == "prompt" else 0
        fallen = falling_pairs(opened, pool, config, max(config.pairs, more), seed=config.seed)
        pairs = fallen.take(np.arange(min(config.pairs, len(fallen.clean))))
        of_edges = fallen.take(np.arange(min(most, len(fallen.clean))))
    with clock.stage("circuit"):
        options = _options(opened, config.scorer)
        circuit = stable_core(
            model,
            pairs.clean,
            pairs.corrupt,
            answers,
            scorer=config.scorer,
            options=options,
            threshold=config.faithfulness,
            select=config.select,
            counts=pairs.counts,
            draws=config.draws,
            details=True,
            batch_size=config.batch_size,
            seed=config.seed,
        )
    if config.edges:
        with clock.stage("edges"):
            edges = stable_edges(
                model,
                of_edges.clean,
                of_edges.corrupt,
                answers,
                start=config.edges,
                scorer=config.scorer if config.scorer in EDGE_SCORERS else EDGES_DEFAULT,
                threshold=config.faithfulness,
                select=config.select_edges,
                draws=config.draws,
                details=True,
                batch_size=config.batch_size,
                seed=config.seed,
            )
            circuit = replace(circuit, edges=edges)
    file = to_file(circuit, shape_of(wiring_of(model), model.config.hidden_size))
    fewest, judging = None, Cost()
    if config.compact:
        with clock.stage("the fewest parts"):
            sizes: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "cost": judging}
            found_fewest = fewest_parts(
                model, pairs.clean, pairs.corrupt, answers, threshold=config.faithfulness, **sizes
            )
            fewest = CompactSet(
                members=[circuit.modules[k] for k in found_fewest.members],
                total=len(circuit.modules),
                faithfulness=found_fewest.faithfulness,
                curve=list(found_fewest.curve),
            )
    found: dict[str, Any] = {
        "about": about(opened, config),
        "compact": fewest,
        "corruption": config.corruption,
        "cost": {**file.cost, "process_peak_bytes": peak_memory_bytes()},
    }
    if test is not None:
        with clock.stage("knock-out"):
            used = pairs.take(np.arange(len(circuit.scores)))
            few = of_edges.take(np.arange(len(circuit.edges.scores) if circuit.edges else 0))
            found |= _knocked_out(opened, config, circuit, found["compact"], used, few, test, judging)
    if config.variants:
        with clock.stage("other seeds, templates, scorers"):
            found["overlaps"], left_out = _variants(opened, config, pool, circuit.granularity)
            said += left_out
    reads: dict[str, Reads] = {}
    if config.reading:
        with clock.stage("what heads read"):
            sample = _encoded(opened, drawn(opened.split.valid, config.reading))
            claims = attention_reading(model, sample, answers).claims(draws=config.draws, seed=config.seed)
            reads = {c.pop("head"): Reads(**c) for c in claims}
    nodes = [
        n.model_copy(update={"groups": dict((groups or {}).get(n.name, {})), "reads": reads.get(n.name)})
        for n in file.nodes
    ]
    if config.units:
        with clock.stage("what fine-tuning stored"):
            found |= stored(opened, config)
    found["cost"] = {**found["cost"], "time_s": clock.total_s}
    found["notes"] = [*file.notes, *judging.notes(" while sets were judged"), *said]
    return file.model_copy(update={**found, "nodes": nodes})


def falling_pairs(opened: Opened, pool: Examples, config: InspectConfig, n: int, **how: Any) -> Aligned:
    """:func:`curerec.aligned.falling` as the configuration has it; ``how``: its seed and template."""
    return falling(
        opened, pool, config.corruption, n, batch_size=config.batch_size, start=config.start, **how
    )


def _test_pairs(
    opened: Opened, examples: Examples, config: InspectConfig
) -> tuple[Aligned | None, list[str]]:
    """Pairs of the knock-out and nothing, or None and why there are none of both labels.

    Made before anything that takes long. Partners have any label, so the floor is chance.
    """
    try:
        test = aligned(
            opened, examples, config.corruption, opposite=False, start=config.start, seed=config.seed
        )
    except PromptError as error:
        why = error.what
    else:
        if len(np.unique(test.clean.label)) > 1:
            return test, []
        why = "those with a twin all have the same label"
    return None, [
        f"the knock-out on {len(examples)} test prompts was left out ({why}): ask for more with --test"
    ]


def _encoded(opened: Opened, part: Examples) -> Prompts:
    made = opened.recommender
    encoder = Encoder(made.tokenizer, made.template, opened.data.titles["title"].to_pylist())
    return encoder.encode(queries(opened.data, part))


def stored(opened: Opened, config: InspectConfig) -> dict[str, Any]:
    """Scores of update units, on validation prompts drawn apart: nothing else depends on the option."""
    assert config.units is not None
    rng, valid = np.random.default_rng([config.seed, 103]), opened.split.valid
    prompts = _encoded(opened, valid.take(np.sort(rng.permutation(len(valid))[: config.unit_prompts])))
    units = stored_in_units(
        opened.recommender.model,
        prompts,
        opened.recommender.answers,
        config.units,
        **_options(opened, "adapter"),
        draws=config.draws,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    return {"units": units, "units_granularity": config.units, "units_prompts": len(prompts)}


def _options(opened: Opened, scorer: str) -> dict[str, Any]:
    """What a scorer needs to be told: ``adapter`` the weights before full fine-tuning."""
    if scorer != "adapter" or hasattr(opened.recommender.model, "peft_config"):
        return {}
    plain, _ = storage.load_base(opened.base, device=device(), dtype=storage.TUNED)
    return {"base_state": plain.state_dict()}


def _knocked_out(
    opened: Opened,
    config: InspectConfig,
    circuit: Circuit,
    fewest: CompactSet | None,
    pairs: Aligned,
    few: Aligned,
    test: Aligned,
    cost: Cost,
) -> dict[str, Any]:
    """Test AUC without the circuit, the fewest parts and what is necessary; the last at both levels."""
    label = test.clean.label
    model, answers, size = opened.recommender.model, opened.recommender.answers, config.batch_size

    def judged(level: Level, names: tuple[str, ...], mean: np.ndarray, core: Any, used: Aligned) -> Any:
        def judge_on(part: Aligned) -> Judge:
            pair = (model, part.clean, part.corrupt, answers)
            if level == "parts":
                return judge_modules(*pair, names, batch_size=size, cost=cost)
            return judge_edges(*pair, batch_size=size, cost=cost)

        _, judging = halves(len(used.clean), config.seed, judged=JUDGED if level == "connections" else None)
        f = Faithfulness(judge_on(used.take(judging)), len(names))
        needed = necessary(f, mean, threshold=config.faithfulness)
        sets = {"draws": 10 if level == "parts" else 5, "seed": config.seed}
        on_test = judge_on(test)
        return matters(on_test, len(names), core, label, **sets), NecessarySet(
            level=level,
            members=[names[k] for k in needed.members],
            total=len(names),
            lost=needed.lost,
            curve=list(needed.curve),
            matters=matters(on_test, len(names), needed.members, label, **sets),
        )

    ranking, _ = halves(len(pairs.clean), config.seed)
    mean = circuit.scores[ranking].mean(0)
    mean = np.where(np.isfinite(circuit.exact), circuit.exact, mean)
    found, needed = judged("parts", circuit.modules, mean, circuit.core, pairs)
    out: dict[str, Any] = {"matters": found, "necessary": [needed]}
    if fewest is not None:
        on_test = judge_modules(
            model, test.clean, test.corrupt, answers, circuit.modules, batch_size=size, cost=cost
        )
        core = [circuit.modules.index(name) for name in fewest.members]
        lost = matters(on_test, len(circuit.modules), core, label, draws=10, seed=config.seed)
        out["compact"] = fewest.model_copy(update={"matters": lost})
    if circuit.edges is not None:
        ranking, _ = halves(len(few.clean), config.seed, judged=JUDGED)
        mean = circuit.edges.scores[ranking].mean(0)
        found, needed = judged("connections", circuit.edges.names, mean, circuit.edges.core, few)
        out |= {"edges_matter": found, "necessary": [*out["necessary"], needed]}
    return out


def _variants(
    opened: Opened, config: InspectConfig, pool: Examples, granularity: str
) -> tuple[list[Overlap], list[str]]:
    """Overlap of the circuits of other seeds, templates and scorers, each from pairs of its own.

    Also which of them gave no circuit, and why: a template that this model does not read moves nothing, and
    few pairs need not lower the margin.

    Scorers rank by themselves here: were those that exact patching finds doubtful replaced by exact scores,
    as everywhere else, all would agree in a small model, however bad they are.
    """
    model, answers = opened.recommender.model, opened.recommender.answers

    def found(scorer: str, seed: int, template: str | None = None, trust: bool = True) -> Circuit:
        pairs = falling_pairs(opened, pool, config, config.variants, template=template, seed=seed)
        return find_core(
            model,
            pairs.clean,
            pairs.corrupt,
            answers,
            scorer=scorer,
            options=_options(opened, scorer),
            granularity="block" if granularity == "block" else "head_mlp",
            threshold=config.faithfulness,
            select=config.select,
            trust=trust,
            draws=20,
            batch_size=config.batch_size,
            seed=seed,
        )

    first, template = config.seed, opened.recommender.template
    # One forward pass a module, or S passes a module, is for models with few modules.
    scorers = [s for s in SCORERS if s not in ("adapter", "ig_node", config.scorer)]
    scorers = [s for s in scorers if s != "exact" or len(sites_of(model).names) <= 64]
    own = (config.scorer, first)
    asked: dict[str, dict[str, tuple[Any, ...]]] = {
        "seeds": {str(first): own, **{str(s): (config.scorer, s) for s in range(first + 1, first + 4)}},
        "templates": {template: own, **{t: (*own, t) for t in TEMPLATES if t != template}},
        "scorers": {s: (s, first, None, False) for s in [config.scorer, *scorers]},
    }
    known: dict[tuple[Any, ...], Circuit | str] = {}  # or why there is none; the own one is asked for twice
    out, said = [], []
    for over, variants in asked.items():
        circuits = {}
        for name, arguments in variants.items():
            if arguments not in known:
                try:
                    known[arguments] = found(*arguments)
                except PromptError as error:
                    known[arguments] = error.what
            one = known[arguments]
            if isinstance(one, str):
                said.append(f"overlap over {over}: {name} gave no circuit ({one})")
            else:
                circuits[name] = one
        table = overlaps(circuits)
        out.append(Overlap(over=over, names=list(table.names), matrix=table.matrix.tolist(), mean=table.mean))
    return out, said


def about(opened: Opened, config: InspectConfig) -> dict[str, str | int | float | None]:
    """What a circuit was found in, and how it was asked for: plain values for ``circuit.json``."""
    made, where = opened.recommender, machine()
    return {
        "data": opened.data.name,
        "base": str(made.base["name"]),
        "kind": opened.recipe.model.kind,
        "template": made.template,
        "weights_sha256": made.card.get("weights_sha256"),
        "seed": config.seed,
        "faithfulness_asked": config.faithfulness if config.select == "faithful" else None,
        "pagerank_from": config.start if config.corruption == "history" else None,
        "select": config.select,
        "select_connections": config.select_edges if config.edges else None,
        **{f"version_{k}": v for k, v in versions().items()},
        **{k: str(v) for k, v in where.items()},
    }
