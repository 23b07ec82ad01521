"""Circuits as files: ``circuit.json`` of this package, and the JSON form of EAP-IG and MIB."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from curerec.circuits.wiring import INPUT, LOGITS, Wiring
from curerec.errors import ModelError
from curerec.records import Circuit

FORMAT = "curerec-circuit"
VERSION = 3  # 1 had no ranks, readings, overlaps and knock-outs, 2 no compact circuit; they are read as well
# JSON has no nan; a number that was not computed is null.
Number = Annotated[float | None, BeforeValidator(lambda v: None if v is None or math.isnan(v) else v)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(_Strict):
    """The graph's size: what names mean."""

    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    n_kv_heads: int = Field(gt=0)
    d_model: int = Field(gt=0)
    parallel_attn_mlp: bool = False


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
    place in the order the circuit grows by (0 first), ``groups`` how many update units of it have which role.
    """

    name: str
    score: Number = None
    low: Number = None
    high: Number = None
    exact: Number = None
    in_graph: bool = False
    rank: int | None = None
    groups: dict[str, int] = {}
    reads: Reads | None = None


class Edge(_Strict):
    """A source and the reader it writes to: mean score (logits), whether it is in the circuit."""

    source: str
    reader: str
    score: Number = None
    in_graph: bool = False


class Measures(_Strict):
    """What was measured of a selection of nodes or edges; null where it was not."""

    faithfulness: Number = None
    completeness: Number = None
    jaccard: Number = None
    cpr: Number = None
    cmd: Number = None
    curve: list[tuple[int, Number]] = []
    minimality: list[Number] = []


class Overlap(_Strict):
    """Jaccard overlap of the circuits that one kind of change (seeds, templates, scorers) leads to."""

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


class CircuitFile(_Strict):
    """Contents of ``circuit.json``: means and measures, no example and no name of a user.

    ``matters`` holds the test AUC of the whole model (``auc``), with all of it patched (``auc_floor``), with
    the circuit alone (``auc_kept``), without it (``auc_without``) and without random sets of its size
    (``auc_random``, ``_low``, ``_high``); ``margin_kept`` is the faithfulness on the same prompts.
    """

    format: Literal["curerec-circuit"] = "curerec-circuit"
    version: Literal[1, 2, 3] = 3
    about: dict[str, str | int | float | None] = {}
    corruption: str | None = None
    shape: Shape
    scorer: str
    granularity: str = "head_mlp"
    nodes: list[Node]
    nodes_measured: Measures = Measures()
    edges: list[Edge] = []
    edges_scorer: str | None = None
    edges_measured: Measures | None = None
    agreement: dict[str, Number] = {}
    knockouts: dict[str, Number] = {}
    matters: dict[str, Number] = {}
    edges_matter: dict[str, Number] = {}
    compact: CompactSet | None = None
    necessary: list[NecessarySet] = []
    overlaps: list[Overlap] = []
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
        )
        for k, name in enumerate(circuit.modules)
    ]
    edges: list[Edge] = []
    if circuit.edges is not None:
        chosen, scores = set(circuit.edges.core), circuit.edges.scores.mean(0)
        edges = [
            Edge(
                source=circuit.edges.sources[s],
                reader=circuit.edges.readers[r],
                score=float(scores[k]),
                in_graph=k in chosen,
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
        edges_measured=_measures(circuit.edges) if circuit.edges else None,
        agreement=circuit.agreement,
        knockouts=circuit.knockouts,
        pairs=circuit.pairs,
        cost=circuit.cost,
        notes=[*circuit.notes, *(circuit.edges.notes if circuit.edges else ())],
    )


def _measures(circuit: Any) -> Measures:
    names = ("faithfulness", "completeness", "jaccard", "cpr", "cmd")
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
        ModelError: it is no circuit of this version; the message names the first field at fault.
    """
    raw = read_json(path)
    if raw.get("format") != FORMAT or raw.get("version") not in range(1, VERSION + 1):
        raise ModelError(
            f"is no {FORMAT} of version 1 to {VERSION}",
            where=f"circuit {path.name}",
            mend="Write it again with this version, or import it with from_eap_ig",
        )
    try:
        return CircuitFile.model_validate(raw).model_copy(update={"version": VERSION})
    except ValidationError as error:
        at = ".".join(str(p) for p in error.errors()[0]["loc"])
        raise ModelError(
            f"the field {at} cannot be read: {error.errors()[0]['msg']}",
            where=f"circuit {path.name}",
            mend="Write it again with this version",
        ) from None


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


def to_eap_ig(file: CircuitFile) -> dict[str, Any]:
    """The JSON form that EAP-IG and MIB read (``Graph.from_json``).

    Their keys and values belong to a query head. Where heads share them, each head of the group is given the
    edge with an equal share of its score, so that scores still add up. The signs are this package's: negative
    where an edge supports the answer; scores of a loss, as EAP-IG's own, have the opposite one.

    Source: github.com/hannamw/EAP-IG, ``Graph.to_json``; names ``input``, ``a0.h1``, ``m0``, ``logits``,
        edges ``a0.h1->m1``, ``a0.h0->a1.h0<q>``.
    """
    share = file.shape.n_heads // file.shape.n_kv_heads
    wanted = {e.source for e in file.edges if e.in_graph}
    nodes: dict[str, dict[str, Any]] = {"input": {"in_graph": INPUT in wanted or not file.edges}}
    for node in file.nodes:
        entry: dict[str, Any] = {"in_graph": node.in_graph}
        if node.score is not None:
            entry["score"] = node.score
        nodes[_short(node.name)] = entry
    if any("score" in entry for entry in nodes.values()):
        nodes["input"]["score"] = _outgoing(file, INPUT)
    nodes["logits"] = {"in_graph": True}
    edges: dict[str, dict[str, Any]] = {}
    for edge in file.edges:
        targets = _targets(edge.reader, share)
        for target in targets:
            score = None if edge.score is None else edge.score / len(targets)
            edges[f"{_short(edge.source)}->{target}"] = {"score": score, "in_graph": edge.in_graph}
    cfg = file.shape.model_dump(exclude={"n_kv_heads"})
    return {"cfg": cfg, "nodes": nodes, "edges": edges}


def from_eap_ig(
    raw: dict[str, Any], *, n_kv_heads: int | None = None, scorer: str = "imported"
) -> CircuitFile:
    """A circuit from the JSON form of EAP-IG and MIB.

    Args:
        raw: its contents; nodes as ``{"in_graph": ..., "score": ...}`` or, as older files have them, as bool.
        n_kv_heads: of the model; its form has none and gives every head keys and values of its own. The edges
            into the heads of a group are added up; the sum is in the circuit where one of them is.
        scorer: name for the record.

    Raises:
        ModelError: a part is missing or a name is none of a node or edge.
    """
    try:
        cfg = raw["cfg"]
        shape = Shape(
            n_layers=cfg["n_layers"],
            n_heads=cfg["n_heads"],
            n_kv_heads=n_kv_heads or cfg["n_heads"],
            d_model=cfg["d_model"],
            parallel_attn_mlp=cfg.get("parallel_attn_mlp", False),
        )
        nodes = []
        for short, value in raw["nodes"].items():
            entry = value if isinstance(value, dict) else {"in_graph": value}
            name = _long(short)
            if name not in (INPUT, LOGITS):
                nodes.append(Node(name=name, score=entry.get("score"), in_graph=bool(entry["in_graph"])))
        edges: dict[tuple[str, str], Edge] = {}
        for name, entry in raw["edges"].items():
            left, right = name.split("->")
            key = (_long(left), _reader(right, shape.n_heads // shape.n_kv_heads))
            old = edges.get(key)
            score = entry.get("score")
            if old is not None and old.score is not None and score is not None:
                score += old.score
            taken = bool(entry["in_graph"]) or (old is not None and old.in_graph)
            edges[key] = Edge(source=key[0], reader=key[1], score=score, in_graph=taken)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"is not in the JSON form of EAP-IG ({type(error).__name__})",
            where="circuit",
            mend="It needs cfg, nodes and edges with names like a0.h1, m0 and a0.h0->a1.h0<q>",
        ) from None
    return CircuitFile(
        shape=shape,
        scorer=scorer,
        nodes=nodes,
        edges=list(edges.values()),
        edges_scorer=scorer if edges else None,
    )


def read_eap_ig(path: Path, *, n_kv_heads: int | None = None) -> CircuitFile:
    """As :func:`from_eap_ig`, from a file."""
    return from_eap_ig(read_json(path), n_kv_heads=n_kv_heads)


def _short(name: str) -> str:
    """``layers.0.head.1`` as ``a0.h1``, ``layers.0.mlp`` as ``m0``."""
    if name in (INPUT, LOGITS):
        return name
    layer = name.split(".")[1]
    return f"a{layer}.h{name.rsplit('.', 1)[1]}" if ".head." in name else f"m{layer}"


def _long(short: str) -> str:
    if short in (INPUT, LOGITS):
        return short
    if head := re.fullmatch(r"a(\d+)\.h(\d+)", short):
        return f"layers.{head[1]}.head.{head[2]}"
    if mlp := re.fullmatch(r"m(\d+)", short):
        return f"layers.{mlp[1]}.mlp"
    raise ValueError(short)


def _targets(reader: str, share: int) -> list[str]:
    """Names of a reader in the other form: one for each head that shares it."""
    parts = reader.split(".")
    if ".head." in reader:
        return [f"a{parts[1]}.h{parts[3]}<q>"]
    if ".kv." in reader:
        group = int(parts[3])
        return [f"a{parts[1]}.h{h}<{parts[4]}>" for h in range(group * share, (group + 1) * share)]
    return [_short(reader)]


def _reader(target: str, share: int) -> str:
    if found := re.fullmatch(r"a(\d+)\.h(\d+)<([qkv])>", target):
        layer, head, kind = found[1], int(found[2]), found[3]
        return f"layers.{layer}.head.{head}.q" if kind == "q" else f"layers.{layer}.kv.{head // share}.{kind}"
    return _long(target)


def _outgoing(file: CircuitFile, source: str) -> float:
    """A source's node score: the sum of its edges; 0 without edges."""
    return float(sum(e.score for e in file.edges if e.source == source and e.score is not None))
