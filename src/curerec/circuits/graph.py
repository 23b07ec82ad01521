"""The graph that a model's size allows: names of its parts and connections, without the model."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from curerec.circuits.wiring import INPUT, LOGITS
from curerec.errors import ModelError


class Shape(BaseModel):
    """A model's size: what names of parts and connections mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_layers: int = Field(gt=0, le=1000)
    n_heads: int = Field(gt=0, le=1000)
    n_kv_heads: int = Field(gt=0, le=1000)
    d_model: int = Field(gt=0)
    parallel_attn_mlp: bool = False


def check_heads(n_heads: int, n_kv_heads: int) -> None:
    """Refuse heads that cannot share keys and values evenly.

    Raises:
        ModelError: there are fewer heads than groups of them, or the groups are not of one size.
    """
    if n_kv_heads > n_heads or n_heads % n_kv_heads:
        raise ModelError(
            f"has {n_heads} heads a layer, which {n_kv_heads} key/value heads cannot share evenly",
            where="circuit",
            mend="Give the recommender that it was found in",
        )


def sources_of(shape: Shape) -> list[str]:
    """What writes to the residual stream: ``input``, then heads and MLP layer by layer."""
    layers = (
        [*(f"layers.{k}.head.{h}" for h in range(shape.n_heads)), f"layers.{k}.mlp"]
        for k in range(shape.n_layers)
    )
    return [INPUT, *(name for layer in layers for name in layer)]


def readers_of(shape: Shape) -> dict[str, int]:
    """What reads the residual stream, and how many of :func:`sources_of`, from the first, it can see."""
    out: dict[str, int] = {}
    for k in range(shape.n_layers):
        before = 1 + k * (shape.n_heads + 1)
        out |= {f"layers.{k}.head.{h}.q": before for h in range(shape.n_heads)}
        out |= {f"layers.{k}.kv.{g}.{kind}": before for kind in "kv" for g in range(shape.n_kv_heads)}
        out[f"layers.{k}.mlp"] = before + (0 if shape.parallel_attn_mlp else shape.n_heads)
    return {**out, LOGITS: 1 + shape.n_layers * (shape.n_heads + 1)}


def edges_of(shape: Shape) -> list[tuple[str, str]]:
    """All connections (source, reader), in the order of :func:`curerec.circuits.edges.edge_scores`."""
    readers = readers_of(shape)
    return [(s, r) for at, s in enumerate(sources_of(shape)) for r, seen in readers.items() if at < seen]


def check_graph(
    shape: Shape, nodes: Iterable[str], edges: Iterable[tuple[str, str]], *, where: str = "circuit"
) -> None:
    """Refuse parts and connections that a model of this size cannot have, or that are there twice.

    Args:
        shape: of the model.
        nodes: names of heads and MLPs.
        edges: (source, reader).
        where: named in the message.

    Raises:
        ModelError: the first part or connection at fault.
    """
    check_heads(shape.n_heads, shape.n_kv_heads)
    place = {name: at for at, name in enumerate(sources_of(shape))}
    seen = readers_of(shape)
    met: set[object] = set()

    def refuse(what: str) -> None:
        raise ModelError(
            what,
            where=where,
            mend=f"A model of {shape.n_layers} layers with {shape.n_heads} heads has connections from "
            "earlier parts into later ones alone; write the file again from the model that it is of",
        )

    for name in nodes:
        if name == INPUT or name not in place:
            refuse(f"names the part {name[:60]!r}, which a model of its shape does not have")
        if name in met:
            refuse(f"names the part {name!r} twice")
        met.add(name)
    for source, reader in edges:
        if source not in place or reader not in seen or place[source] >= seen[reader]:
            refuse(f"names the connection {source[:60]!r} -> {reader[:60]!r}, which such a model cannot have")
        if (source, reader) in met:
            refuse(f"names the connection {source!r} -> {reader!r} twice")
        met.add((source, reader))
