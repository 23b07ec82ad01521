"""Tables of a circuit: its parts, connections, update units and overlaps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from curerec.reports import figures as f
from curerec.reports.circuit_graph import leading, title_of
from curerec.reports.circuit_words import edge_title, part_text
from curerec.reports.grid import ROLE_NAMES
from curerec.reports.svg import finite
from curerec.reports.tables import Table


def overlap_table(overlap: Mapping[str, Any]) -> Table:
    """Jaccard overlap of every two circuits."""
    return Table(
        ["", *overlap["names"]],
        [
            [name, *(f.fixed(v, 2) for v in row)]
            for name, row in zip(overlap["names"], overlap["matrix"], strict=True)
        ],
    )


def node_table(nodes: Sequence[Mapping[str, Any]]) -> Table:
    """All parts with scores, in the order the circuit grows by."""
    grouped = any(n["groups"] for n in nodes)
    rows = []
    for n in sorted(nodes, key=lambda n: (n["rank"] is None, n["rank"], n["name"])):
        row = [
            title_of(n["name"]),
            "yes" if n["in_graph"] else "",
            f.fixed(n["score"]),
            f.interval(n["low"], n["high"]) if len(finite(n["low"], n["high"])) == 2 else f.NONE,
            f.fixed(n["exact"]),
            f.percent(n["dropped"]),
            part_text(n["reads"]["part"]).removeprefix("the ")
            if n["reads"] and n["reads"]["part"]
            else f.NONE,
        ]
        if grouped:
            role = leading(n["groups"])
            row.append(ROLE_NAMES[role] if role else f.NONE)
        rows.append(row)
    heads = ["Part", "In the circuit", "Score", "95 % interval", "Exact", "Lost without it", "Reads"]
    return Table([*heads, "Group"] if grouped else heads, rows)


def edge_table(
    edges: Sequence[Mapping[str, Any]], most: int, shape: Mapping[str, Any] | None = None
) -> Table:
    """The connections of the circuit with the largest scores, at most so many; named by the model's shape."""
    inside = [e for e in edges if e["in_graph"] and finite(e["score"])]
    rows = [
        [
            edge_title(f"{e['source']}->{e['reader']}", shape),
            f.fixed(e["score"]),
            f.interval(e["low"], e["high"]) if len(finite(e["low"], e["high"])) == 2 else f.NONE,
            f.percent(e["dropped"]),
        ]
        for e in sorted(inside, key=lambda e: -abs(e["score"]))[:most]
    ]
    return Table(["Connection", "Score", "95 % interval", "Lost without it"], rows)


def largest_units(units: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The update units with the largest absolute scores, at most so many."""
    return sorted((u for u in units if finite(u["score"])), key=lambda u: -abs(u["score"]))[:most]


def unit_table(units: Sequence[Mapping[str, Any]], most: int) -> Table:
    """The largest update units: to first order with the interval, and exactly."""
    rows = [
        [
            unit_title(u["name"]),
            f.significant(u["score"]),  # a single row's is often below .001
            f"{f.significant(u['low'])} to {f.significant(u['high'])}"
            if len(finite(u["low"], u["high"])) == 2
            else f.NONE,
            f.significant(u["exact"]),
        ]
        for u in largest_units(units, most)
    ]
    return Table(["Unit", "Score", "95 % interval", "Exact"], rows)


def unit_title(name: str) -> str:
    """An update unit's name in words.

    Example:
        >>> unit_title("layers.0.q_proj.row.5"), unit_title("layers.1.mlp"), unit_title("embed_tokens.row.7")
        ('Layer 0, q_proj, row 5', 'Layer 1, MLP', 'embed_tokens, row 7')
    """
    found = re.fullmatch(r"(?:layers\.(\d+)\.)?([a-z_.]+?)(?:\.(row|rank)\.(\d+))?", name)
    if found is None or title_of(name) != name:
        return title_of(name)
    layer, place, kind, number = found.groups()
    said = [f"Layer {layer}"] if layer else []
    return ", ".join([*said, place, *([f"{kind} {number}"] if kind else [])])
