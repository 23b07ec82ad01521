"""The circuit as a picture: layers upwards, heads and MLPs as nodes, edges by weight."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curerec.reports.grid import ORDER
from curerec.reports.svg import SMALL_PX, el, finite, label, picture

INPUT, LOGITS = "input", "logits"
MOST_EDGES = 400  # drawn; circuit.json holds all
_LEFT, _RIGHT = 64.0, 14.0


@dataclass(frozen=True)
class Link:
    """All edges from one source into one node, with the readers they go through.

    Attributes:
        source, target: nodes.
        score: sum over its readers, logits.
        readers: (``q``, ``k``, ``v`` or empty, score).
        chosen: whether one of them is in the circuit of edges.
    """

    source: str
    target: str
    score: float
    readers: tuple[tuple[str, float], ...]
    chosen: bool


def heads_of(group: int, n_heads: int, n_kv: int) -> range:
    """The heads that share one group's keys and values.

    Example:
        >>> list(heads_of(1, 9, 3))
        [3, 4, 5]
    """
    share = n_heads // n_kv
    return range(group * share, (group + 1) * share)


def links(edges: Sequence[Mapping[str, Any]], n_heads: int, n_kv: int) -> list[Link]:
    """Edges by the nodes they join, heaviest first; keys and values that heads share go to each of them.

    Args:
        edges: of ``circuit.json``.
        n_heads, n_kv: of its shape.

    Example:
        >>> edge = {"source": "input", "reader": "layers.0.kv.0.v", "score": -1.0, "in_graph": True}
        >>> [(x.target, x.score) for x in links([edge], 2, 1)]
        [('layers.0.head.0', -0.5), ('layers.0.head.1', -0.5)]
    """
    found: dict[tuple[str, str], tuple[dict[str, float], list[bool]]] = {}
    for edge in edges:
        score = finite(edge["score"])
        kind, targets = "", [edge["reader"]]
        if match := re.fullmatch(r"(layers\.\d+)\.head\.(\d+)\.q", edge["reader"]):
            kind, targets = "q", [f"{match[1]}.head.{match[2]}"]
        elif match := re.fullmatch(r"(layers\.\d+)\.kv\.(\d+)\.([kv])", edge["reader"]):
            kind = match[3]
            targets = [f"{match[1]}.head.{h}" for h in heads_of(int(match[2]), n_heads, n_kv)]
        for target in targets:
            readers, chosen = found.setdefault((edge["source"], target), ({}, []))
            readers[kind] = readers.get(kind, 0.0) + (score[0] / len(targets) if score else 0.0)
            chosen.append(bool(edge["in_graph"]))
    made = [
        Link(s, t, sum(readers.values()), tuple(readers.items()), any(chosen))
        for (s, t), (readers, chosen) in found.items()
    ]
    return sorted(made, key=lambda x: -abs(x.score))


def leading(groups: Mapping[str, int]) -> str | None:
    """The role most of a node's units have; None where they were not sorted.

    Example:
        >>> leading({"forget": 3, "frozen": 5}), leading({})
        ('frozen', None)
    """
    counted = {role: groups.get(role, 0) for role in ORDER}
    return max(counted, key=lambda role: counted[role]) if any(counted.values()) else None


def graph(nodes: Sequence[Mapping[str, Any]], edges: Sequence[Link], *, n_layers: int, n_heads: int) -> str:
    """The picture; its script shows and hides nodes by the size chosen.

    Args:
        nodes: of ``circuit.json``.
        edges: from :func:`links`; the heaviest are drawn.
        n_layers, n_heads: of the model.

    Returns:
        SVG text; every node is a ``g.node`` with ``data-name``, every edge a ``g.edge`` with ``data-source``
        and ``data-target``.
    """
    pitch_x = 84.0 if n_heads <= 4 else 62.0 if n_heads <= 8 else 46.0 if n_heads <= 12 else 34.0
    pitch_y = 150.0 if n_layers <= 2 else 104.0 if n_layers <= 4 else 72.0 if n_layers <= 12 else 54.0
    radius = 17.0 if n_heads <= 8 and n_layers <= 12 else 12.0
    wide = max(pitch_x * (n_heads + 1), 420.0)
    pitch_x = wide / (n_heads + 1)
    full, high = _LEFT + wide + _RIGHT, pitch_y * n_layers + 120.0
    middle = _LEFT + wide / 2

    def y_of(layer: int, mlp: bool) -> float:
        # An MLP reads what its layer's heads write, so it stands a little higher.
        return high - 78.0 - pitch_y * layer - (pitch_y * 0.52 if mlp else pitch_y * 0.18)

    at = {INPUT: (middle, high - 26.0), LOGITS: (middle, 26.0)}
    for node in nodes:
        place = _place(node["name"])
        if place is None:
            continue
        layer, head = place
        x = _LEFT + pitch_x * ((n_heads if head is None else head) + 0.5)
        at[node["name"]] = (x, y_of(layer, head is None))
    parts = []
    for k in range(n_layers):
        if k % 2 == 0:
            top = high - 78.0 - pitch_y * (k + 1) + pitch_y * 0.1
            parts.append(el("rect", x=0.0, y=top, width=full, height=pitch_y, rx=6.0, class_="stripe"))
        parts.append(
            label(10.0, y_of(k, False) - pitch_y * 0.12, f"Layer {k}", size=SMALL_PX, class_="quiet")
        )
    heaviest = max((abs(x.score) for x in edges), default=0.0)
    drawn = [x for x in edges[:MOST_EDGES] if x.source in at and x.target in at]
    thick = 6.0 if len(drawn) <= 120 else 3.5  # px of the heaviest line
    parts += [_edge(k, x, at, heaviest, radius, thick) for k, x in reversed(list(enumerate(drawn)))]
    for name, text in ((INPUT, "prompt"), (LOGITS, "answer")):
        parts.append(_end(name, text, *at[name]))
    largest = max((abs(n["score"]) for n in nodes if finite(n["score"])), default=0.0)
    parts += [_node(n, *at[n["name"]], radius, largest) for n in nodes if n["name"] in at]
    about = (
        "From the prompt at the bottom to the answer at the top; lines are what one part reads of another."
    )
    few = " few" if n_heads <= 4 else ""
    return picture(full, high, "The circuit", about, *parts, class_=f"chart graph{few}", role="group")


def _place(name: str) -> tuple[int, int | None] | None:
    match = re.fullmatch(r"layers\.(\d+)\.(?:head\.(\d+)|mlp)", name)
    return None if match is None else (int(match[1]), None if match[2] is None else int(match[2]))


def title_of(name: str) -> str:
    """A node's name in words.

    Example:
        >>> title_of("layers.0.head.3"), title_of("layers.1.mlp"), title_of("input")
        ('Layer 0, head 3', 'Layer 1, MLP', 'Prompt')
    """
    place = _place(name)
    if place is None:
        return {INPUT: "Prompt", LOGITS: "Answer"}.get(name, name)
    return f"Layer {place[0]}, " + ("MLP" if place[1] is None else f"head {place[1]}")


def _edge(
    k: int, link: Link, at: Mapping[str, tuple[float, float]], heaviest: float, radius: float, thick: float
) -> str:
    (x1, y1), (x2, y2) = at[link.source], at[link.target]
    y1, y2 = y1 - (13.0 if link.source == INPUT else radius), y2 + (13.0 if link.target == LOGITS else radius)
    bend = max(24.0, 0.45 * (y1 - y2))
    path = f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 - bend:.1f} {x2:.1f} {y2 + bend:.1f} {x2:.1f} {y2:.1f}"
    share = abs(link.score) / heaviest if heaviest else 0.0
    kind = "for" if link.score < 0 else "against"
    return el(
        "g",
        el("path", d=path, class_="hit", stroke_width=9.0),
        el("path", d=path, class_="line", stroke_width=0.75 + thick * share, opacity=0.25 + 0.6 * share**0.5),
        class_=f"edge {kind}" + (" chosen" if link.chosen else ""),
        data_edge=str(k),
        data_source=link.source,
        data_target=link.target,
    )


def _end(name: str, text: str, x: float, y: float) -> str:
    return el(
        "g",
        el("rect", x=x - 46.0, y=y - 13.0, width=92.0, height=26.0, rx=13.0, class_="body"),
        label(x, y + 4.5, text, anchor="middle", class_="strong"),
        class_="node end in",
        data_name=name,
    )


def _node(node: Mapping[str, Any], x: float, y: float, radius: float, largest: float) -> str:
    name = node["name"]
    _, head = _place(name) or (0, None)
    role = leading(node.get("groups") or {})
    score = finite(node["score"])
    kind = f"role-{role}" if role else "against" if score and score[0] > 0 else "for"
    # The ring's fill says how much: a part that matters is full, one that does not is pale.
    share = abs(score[0]) / largest if score and largest else 0.0
    shape: dict[str, Any] = (
        {
            "x": x - radius * 1.25,
            "y": y - radius * 0.85,
            "width": radius * 2.5,
            "height": radius * 1.7,
            "rx": 5.0,
        }
        if head is None
        else {"cx": x, "cy": y, "r": radius}
    )
    tag = "rect" if head is None else "circle"
    half = (
        15.0 if head is None else 8.0 if (head or 0) < 10 else 10.0
    )  # of the plate that keeps names readable
    return el(
        "g",
        el(tag, **shape, class_="ground"),
        el(tag, **shape, class_=f"tint {kind}", fill_opacity=1.0 if role else 0.14 + 0.8 * share**0.7),
        el(tag, **shape, class_="body"),
        el("rect", x=x - half, y=y - 8.0, width=2 * half, height=16.0, rx=8.0, class_="plate"),
        label(
            x,
            y + 4.5,
            "MLP" if head is None else f"{head}",
            anchor="middle",
            size=SMALL_PX,
            class_="name",
        ),
        class_="node" + (" in" if node["in_graph"] else ""),
        data_name=name,
        tabindex="0",
        role="button",
        aria_label=title_of(name),
    )
