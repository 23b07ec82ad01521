"""Circuits in the JSON form of EAP-IG and MIB, to and from this package's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from curerec.circuits.exchange import CircuitFile, Edge, Node, read_json
from curerec.circuits.graph import Shape, check_graph, check_heads, edges_of
from curerec.circuits.wiring import INPUT, LOGITS
from curerec.errors import ModelError


def to_eap_ig(file: CircuitFile) -> dict[str, Any]:
    """The JSON form that EAP-IG and MIB read (``Graph.from_json``).

    Their keys and values belong to a query head. Where heads share them, each head of the group is given the
    edge with an equal share of its score, so that scores still add up. The signs are this package's: negative
    where an edge supports the answer; scores of a loss, as EAP-IG's own, have the opposite one.

    Their circuit is its edges: a node without any is pruned away. A circuit of parts alone is therefore given
    all edges that leave the prompt or one of its parts, as their selection by nodes gives it: the same run.
    A score that is not known is written as 0, for their reader takes numbers alone.

    Source: github.com/hannamw/EAP-IG, ``Graph.to_json``, ``from_json`` and ``apply_topn`` with ``node``;
        names ``input``, ``a0.h1``, ``m0``, ``logits``, edges ``a0.h1->m1``, ``a0.h0->a1.h0<q>``.
    """
    check_heads(file.shape.n_heads, file.shape.n_kv_heads)
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
    for edge in file.edges or _of_parts(file):
        targets = _targets(edge.reader, share)
        for target in targets:
            score = (edge.score or 0.0) / len(targets)
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
        ModelError: a part is missing, a name is none of a node or edge, or a model of this size has no such
            part or connection.
    """
    try:
        cfg = raw["cfg"]
        if n_kv_heads:
            check_heads(int(cfg["n_heads"]), n_kv_heads)
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
            if old is not None:  # a sum is known where all of it is
                score = None if old.score is None or score is None else old.score + score
            taken = bool(entry["in_graph"]) or (old is not None and old.in_graph)
            edges[key] = Edge(source=key[0], reader=key[1], score=score, in_graph=taken)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"is not in the JSON form of EAP-IG ({type(error).__name__})",
            where="circuit",
            mend="It needs cfg, nodes and edges with names like a0.h1, m0 and a0.h0->a1.h0<q>",
        ) from None
    check_graph(shape, [n.name for n in nodes], edges)
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


def _of_parts(file: CircuitFile) -> list[Edge]:
    """All edges; in the circuit are those that leave the prompt or a part that is."""
    inside = {INPUT, *(n.name for n in file.nodes if n.in_graph)}
    return [Edge(source=s, reader=r, in_graph=s in inside) for s, r in edges_of(file.shape)]


def _outgoing(file: CircuitFile, source: str) -> float:
    """A source's node score: the sum of its edges; 0 without edges."""
    return float(sum(e.score for e in file.edges if e.source == source and e.score is not None))
