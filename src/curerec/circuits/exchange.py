"""Circuits as files: ``circuit.json`` of this package; :mod:`.eap_ig` has the form of EAP-IG and MIB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from curerec.circuits.graph import Shape, check_graph
from curerec.circuits.wiring import Wiring
from curerec.errors import ModelError
from curerec.records import Circuit

FORMAT = "curerec-circuit"
#: 1 had no ranks, readings, overlaps and knock-outs, 2 no compact circuit, 3 no edges of blocks, 4 no overlap
#: of chance, intervals of edges, knock-outs of edges and drop-one effects by name.
VERSION = 5


def _number(value: Any) -> Any:
    """JSON has no nan: a number that was not computed is null."""
    if isinstance(value, str | bytes | bool):  # which pydantic would take for numbers, "nan" among them
        raise ValueError("a number or null is needed")
    return None if isinstance(value, float | np.floating) and np.isnan(value) else value


Number = Annotated[float | None, BeforeValidator(_number)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Reads(_Strict):
    """Where a head looks from the answer position; see :class:`curerec.circuits.reading.Reading`.

    ``part`` is None where no part gets more than its share of the tokens; ``prompts`` is the share of the
    prompts in which the part does.
    """

    part: str | None = None
    mass: Number = None
    low: Number = None
    high: Number = None
    tokens: Number = None
    prompts: Number = None
    by_part: dict[str, Number] = {}


class Node(_Strict):
    """A head or MLP.

    ``score`` is the mean (logits) with its bootstrap interval, ``exact`` that of exact patching, ``rank`` the
    place in the order the circuit grows by (0 first), ``dropped`` the faithfulness that the circuit loses
    when this part alone is dropped, ``groups`` how many update units of it have which role.
    """

    name: str
    score: Number = None
    low: Number = None
    high: Number = None
    exact: Number = None
    in_graph: bool = False
    rank: int | None = None
    dropped: Number = None
    groups: dict[str, int] = {}
    reads: Reads | None = None


class Edge(_Strict):
    """A source and the reader it writes to.

    ``score`` is the mean (logits) with its bootstrap interval, ``dropped`` as of a :class:`Node`.
    """

    source: str
    reader: str
    score: Number = None
    low: Number = None
    high: Number = None
    in_graph: bool = False
    dropped: Number = None


class Measures(_Strict):
    """What was measured of a selection of nodes or edges; null where it was not.

    ``jaccard_chance`` is the overlap of random sets of the circuit's size, which ``jaccard`` has to exceed.
    """

    faithfulness: Number = None
    completeness: Number = None
    jaccard: Number = None
    jaccard_chance: Number = None
    cpr: Number = None
    cmd: Number = None
    curve: list[tuple[int, Number]] = []
    minimality: list[Number] = []


class Overlap(_Strict):
    """Jaccard overlap of the circuits that one kind of change (seeds, templates, scorers) leads to.

    ``mean`` is null of fewer than two circuits; the file's notes say which were not found, and why.
    """

    over: str
    names: list[str]
    matrix: list[list[Number]]
    mean: Number = None


class NecessarySet(_Strict):
    """The smallest set whose loss takes most of the margin; see :mod:`curerec.circuits.necessary`.

    ``lost`` is the share of the margin that goes with it on the judging pairs, ``matters`` what its loss
    costs on test prompts, as :attr:`CircuitFile.matters`.
    """

    level: Literal["parts", "connections"]
    members: list[str]
    total: int
    lost: Number = None
    curve: list[tuple[int, Number]] = []
    matters: dict[str, Number] = {}


class CompactSet(_Strict):
    """The fewest parts that carry the answer, by elimination; see :mod:`curerec.circuits.compact`.

    ``faithfulness`` is that of the judging pairs, ``matters`` what it keeps and what its loss costs on test
    prompts, as :attr:`CircuitFile.matters`.
    """

    members: list[str]
    total: int
    faithfulness: Number = None
    curve: list[tuple[int, Number]] = []
    matters: dict[str, Number] = {}


class UnitScore(_Strict):
    """An update unit: what fine-tuning stored in it is worth; see :mod:`curerec.circuits.stored`.

    ``score`` is the first-order change of the margin (logits) if the unit's change were removed, with its
    bootstrap interval; ``exact`` the measured one, of the largest units.
    """

    name: str
    score: Number = None
    low: Number = None
    high: Number = None
    exact: Number = None


class CircuitFile(_Strict):
    """Contents of ``circuit.json``: means and measures, no example and no name of a user.

    ``matters`` holds the test AUC of the whole model (``auc``), with all of it patched (``auc_floor``), with
    the circuit alone (``auc_kept``), without it (``auc_without``) and without random sets of its size
    (``auc_random``, ``_low``, ``_high``); ``margin_kept`` is the faithfulness on the same prompts.
    ``units`` are there where they were asked for, of ``units_granularity``, scored on ``units_prompts``.
    """

    format: Literal["curerec-circuit"] = "curerec-circuit"
    version: Literal[1, 2, 3, 4, 5] = 5  # older ones are read as well
    about: dict[str, str | int | float | None] = {}
    corruption: str | None = None
    shape: Shape
    scorer: str
    granularity: str = "head_mlp"
    nodes: list[Node]
    nodes_measured: Measures = Measures()
    edges: list[Edge] = []
    edges_scorer: str | None = None
    edges_granularity: str | None = None
    edges_pairs: int | None = None
    edges_measured: Measures | None = None
    edges_knockouts: dict[str, Number] = {}
    agreement: dict[str, Number] = {}
    knockouts: dict[str, Number] = {}
    matters: dict[str, Number] = {}
    edges_matter: dict[str, Number] = {}
    compact: CompactSet | None = None
    necessary: list[NecessarySet] = []
    overlaps: list[Overlap] = []
    units: list[UnitScore] = []
    units_granularity: str | None = None
    units_prompts: int | None = None
    pairs: dict[str, int] = {}
    cost: dict[str, Number] = {}
    notes: list[str] = []


def shape_of(wiring: Wiring, d_model: int) -> Shape:
    """Size of a model's graph."""
    return Shape(
        n_layers=len(wiring.layers),
        n_heads=wiring.n_heads,
        n_kv_heads=wiring.n_kv,
        d_model=d_model,
        parallel_attn_mlp=wiring.parallel,
    )


def to_file(circuit: Circuit, shape: Shape) -> CircuitFile:
    """A circuit with what was measured of it, without its per-example scores."""
    core = set(circuit.core)
    mean = circuit.scores.mean(0)
    dropped = dict(zip(circuit.core, circuit.minimality, strict=False))
    rank = {k: at for at, k in enumerate(circuit.order)}

    def number(values: np.ndarray | None, k: int) -> float | None:
        return None if values is None else float(values[k])

    nodes = [
        Node(
            name=name,
            score=float(mean[k]),
            low=number(circuit.low, k),
            high=number(circuit.high, k),
            exact=number(circuit.exact, k),
            in_graph=k in core,
            rank=rank.get(k),
            dropped=dropped.get(k),
        )
        for k, name in enumerate(circuit.modules)
    ]
    edges: list[Edge] = []
    if circuit.edges is not None:
        chosen, scores = set(circuit.edges.core), circuit.edges.scores.mean(0)
        dropped = dict(zip(circuit.edges.core, circuit.edges.minimality, strict=False))
        edges = [
            Edge(
                source=circuit.edges.sources[s],
                reader=circuit.edges.readers[r],
                score=float(scores[k]),
                low=number(circuit.edges.low, k),
                high=number(circuit.edges.high, k),
                in_graph=k in chosen,
                dropped=dropped.get(k),
            )
            for k, (s, r) in enumerate(zip(circuit.edges.source, circuit.edges.reader, strict=True))
        ]
    return CircuitFile(
        shape=shape,
        scorer=circuit.scorer,
        granularity=circuit.granularity,
        nodes=nodes,
        nodes_measured=_measures(circuit),
        edges=edges,
        edges_scorer=circuit.edges.scorer if circuit.edges else None,
        edges_granularity=circuit.edges.granularity if circuit.edges else None,
        edges_pairs=len(circuit.edges.scores) if circuit.edges else None,
        edges_measured=_measures(circuit.edges) if circuit.edges else None,
        edges_knockouts=circuit.edges.knockouts if circuit.edges else {},
        agreement=circuit.agreement,
        knockouts=circuit.knockouts,
        pairs=circuit.pairs,
        cost={
            **circuit.cost,
            **({f"edges_{k}": v for k, v in circuit.edges.cost.items()} if circuit.edges else {}),
        },
        notes=[
            *circuit.notes,
            *(f"connections: {n}" for n in (circuit.edges.notes if circuit.edges else ())),
        ],
    )


def _measures(circuit: Any) -> Measures:
    names = ("faithfulness", "completeness", "jaccard", "jaccard_chance", "cpr", "cmd")
    return Measures(
        **{name: getattr(circuit, name) for name in names},
        curve=list(circuit.curve),
        minimality=list(circuit.minimality),
    )


def write(file: CircuitFile, path: Path) -> None:
    """Write ``circuit.json``."""
    path.write_text(file.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> CircuitFile:
    """Read ``circuit.json``; what an earlier version did not have is empty.

    Raises:
        ModelError: it is no circuit of this version, the message names the first field at fault; or a model
            of its size has no such part or connection.
    """
    raw = read_json(path)
    if raw.get("format") != FORMAT or raw.get("version") not in range(1, VERSION + 1):
        raise ModelError(
            f"is no {FORMAT} of version 1 to {VERSION}",
            where=f"circuit {path.name}",
            mend="Write it again with this version, or import it with eap_ig.from_eap_ig",
        )
    try:
        file = CircuitFile.model_validate(raw).model_copy(update={"version": VERSION})
    except ValidationError as error:
        at = ".".join(str(p) for p in error.errors()[0]["loc"])
        raise ModelError(
            f"the field {at} cannot be read: {error.errors()[0]['msg']}",
            where=f"circuit {path.name}",
            mend="Write it again with this version",
        ) from None
    edges = [(e.source, e.reader) for e in file.edges]
    check_graph(file.shape, [n.name for n in file.nodes], edges, where=f"circuit {path.name}")
    return file


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: it is none.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raw = None
    if not isinstance(raw, dict):
        raise ModelError("cannot be read as JSON", where=f"circuit {path.name}", mend="Give a circuit file")
    return raw
