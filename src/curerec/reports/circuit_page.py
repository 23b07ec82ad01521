"""From ``circuit.json`` to one self-contained page with a picture that can be explored."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from curerec.errors import DataError
from curerec.reports import circuit_tables as tables
from curerec.reports import circuit_words as say
from curerec.reports import figures as f
from curerec.reports.circuit_curve import curve
from curerec.reports.circuit_graph import MOST_EDGES, Link, graph, leading, links, title_of
from curerec.reports.files import replace_file
from curerec.reports.grid import ORDER, ROLE_NAMES
from curerec.reports.svg import clean, finite
from curerec.reports.templating import template

VERSION = 5  # as circuits.exchange.VERSION: pages are made without torch, which importing that would bring
MANY = 40  # rows of the table that are shown unfolded
EDGES_SHOWN = 24  # connections in their table; circuit.json holds all
UNITS_SHOWN = 30  # update units likewise


def render_circuit(file: Mapping[str, Any]) -> str:
    """The page of a circuit.

    Args:
        file: contents of ``circuit.json`` (``CircuitFile.model_dump(mode="json")``).

    Returns:
        One page: style, script and picture inline, nothing loaded; the page's policy allows its own script
        alone, by its digest. Without a script the circuit found is shown, only the slider is not.

    Raises:
        DataError: the mapping is no circuit of this version.
    """
    if file.get("format") != "curerec-circuit" or file.get("version") != VERSION:
        raise DataError(
            f"is no circuit of version {VERSION}", where="circuit", mend="Read it with exchange.read"
        )
    script = files("curerec.reports").joinpath("templates/circuit.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("circuit.html.j2").render(_view(file), script=Markup(script), digest=digest) + "\n"


def write_circuit_page(file: Mapping[str, Any], path: str | Path) -> Path:
    """Render a circuit and write it whole or not at all.

    Raises:
        DataError: the mapping is no circuit.
        StorageError: the file cannot be written.
    """
    return replace_file(path, render_circuit(file))


def _view(file: Mapping[str, Any]) -> dict[str, Any]:
    shape, nodes = file["shape"], file["nodes"]
    joined = links(file["edges"], shape["n_heads"], shape["n_kv_heads"])
    core = sum(n["in_graph"] for n in nodes)
    points = file["nodes_measured"]["curve"]
    asked = file["about"].get("faithfulness_asked")
    drawn = curve(points, core, asked=asked if isinstance(asked, float) else None)
    ranked = bool(drawn) and all(n["rank"] is not None for n in nodes)
    edges = file["edges_measured"]
    return {
        "file": file,
        "f": f,
        "say": say,
        "sentence": say.sentence(file),
        "core": core,
        "eyebrow": [str(file["about"][k]) for k in ("data", "base") if file["about"].get(k)],
        "graph": Markup(graph(nodes, joined, n_layers=shape["n_layers"], n_heads=shape["n_heads"])),
        "curve": Markup(drawn),
        "ranked": ranked,
        "sizes": [size for size, value in points if finite(value)],
        "roles": [
            (role, ROLE_NAMES[role]) for role in ORDER if any(leading(n["groups"]) == role for n in nodes)
        ],
        "n_edges": len(joined),
        "most_edges": MOST_EDGES,
        "readings": say.reading(nodes),
        "reading_summary": say.reading_summary(nodes),
        "corruption": say.corruption_text(file),
        "measures": say.measures(file),
        "tables": _tables(file),
        "edge_facts": _edge_facts(file, edges) if edges else [],
        "edge_table": tables.edge_table(file["edges"], EDGES_SHOWN, shape),
        "units_text": say.units_text(file),
        "unit_table": tables.unit_table(file["units"], UNITS_SHOWN),
        "overlaps": [(o["over"], o["mean"], tables.overlap_table(o)) for o in file["overlaps"]],
        "node_table": tables.node_table(nodes),
        "many": MANY,
        "facts": _facts(file),
        "about": [(k.replace("_", " "), str(v)) for k, v in file["about"].items() if v is not None],
        "island": _island(nodes, joined, points),
    }


def _tables(file: Mapping[str, Any]) -> list[tuple[str, list[Any], list[str]]]:
    """Caption, rows and sentences of the knock-outs, by parts and by connections."""
    out = []
    for level, caption, what, found in (
        ("parts", "By parts", "the circuit", file["matters"]),
        ("connections", "By connections", "the circuit of connections", file["edges_matter"]),
    ):
        if found:
            rows, said = say.matters_rows(found), [say.verdict(found, what)]
            if level == "parts" and file["compact"]:
                rows += say.compact_rows(file["compact"])
                said.append(say.compact_text(file["compact"]))
            for needed in file["necessary"]:
                if needed["level"] == level:
                    rows += say.necessary_rows(needed)
                    said.append(say.necessary_text(needed, file["shape"]))
            out.append((caption, rows, [text for text in said if text]))
    return out


def _island(nodes: Any, joined: list[Link], points: Any) -> Markup:
    """What the script needs, as JSON that cannot end the element it stands in."""
    data = {
        "nodes": {
            n["name"]: {
                "title": title_of(n["name"]),
                "rank": n["rank"],
                "in": n["in_graph"],
                "lines": _node_lines(n),
            }
            for n in nodes
        },
        "edges": [
            {
                "title": f"{title_of(x.source)} → {title_of(x.target)}",
                "lines": _edge_lines(x),
            }
            for x in joined[:MOST_EDGES]
        ],
        "curve": [[size, value] for size, value in points if finite(value)],
    }
    text = json.dumps(_cleaned(data), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {clean(k): _cleaned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_cleaned(v) for v in value]
    return clean(value) if isinstance(value, str) else value


def _node_lines(n: Mapping[str, Any]) -> list[str]:
    lines = ["in the circuit" if n["in_graph"] else "not in the circuit"]
    if n["rank"] is not None:
        lines[0] += f", place {n['rank'] + 1}"
    if finite(n["score"]):
        between = f.interval(n["low"], n["high"]) if len(finite(n["low"], n["high"])) == 2 else ""
        lines.append(f"score {f.fixed(n['score'])}" + (f" (95 % interval {between})" if between else ""))
    if finite(n["dropped"]):
        lines.append(f"the circuit loses {f.percent(n['dropped'])} of the margin without it")
    if finite(n["exact"]):
        lines.append(f"exact patching {f.fixed(n['exact'])}")
    reads = n["reads"]
    if reads and reads["part"]:
        lines.append(
            f"reads {say.part_text(reads['part'])}: {f.percent(reads['mass'])} of its attention, "
            f"{f.percent(reads['tokens'])} of the tokens"
        )
    if n["groups"] and say.group_text(n["groups"]):
        lines.append(say.group_text(n["groups"]))
    return lines


def _edge_lines(x: Link) -> list[str]:
    lines = [f"score {f.fixed(x.score)}", *(["in the circuit of connections"] if x.chosen else [])]
    names = {"q": "queries", "k": "keys", "v": "values"}
    parts = [f"{names[kind]} {f.fixed(value)}" for kind, value in x.readers if kind]
    return [*lines, ", ".join(parts)] if parts else lines


def _edge_facts(file: Mapping[str, Any], m: Mapping[str, Any]) -> list[tuple[str, str]]:
    chosen = sum(e["in_graph"] for e in file["edges"])
    scorer = file["edges_scorer"] or f.NONE
    k = file["edges_knockouts"]
    rows = [
        ("Connections in the circuit", f"{f.count(chosen)} of {f.count(len(file['edges']))}"),
        ("They keep of the margin", f.percent(m["faithfulness"])),
        ("Lost without them", f.percent(m["completeness"])),
        (
            "Their overlap over resamples",
            f.percent(m["jaccard"]) + say.chance_text(m) if finite(m["jaccard"]) else "",
        ),
        ("Mean faithfulness over all sizes (CPR)", f.fixed(m["cpr"]) if finite(m["cpr"]) else ""),
        ("Mean distance from 1 (CMD)", f.fixed(m["cmd"]) if finite(m["cmd"]) else ""),
        ("Most lost by dropping one", _most_dropped(m)),
        ("Largest gap after losing a random half", f.percent(k["random"]) if finite(k.get("random")) else ""),
        ("Gap after the worst few", f.percent(k["greedy"]) if finite(k.get("greedy")) else ""),
        ("Scorer of connections", scorer),
        ("Pairs they were scored on", f.count(file["edges_pairs"]) if file["edges_pairs"] else ""),
        (
            "Connections chosen by",
            {"block": "all heads of a layer together", "head_mlp": "head and MLP"}.get(
                file["edges_granularity"], ""
            ),
        ),
    ]
    return [(name, v) for name, v in rows if v]


def _most_dropped(m: Mapping[str, Any]) -> str:
    """The largest drop-one effect, and of how many it was measured."""
    lost = finite(*m["minimality"])
    return f"{f.percent(max(lost))} of the margin, of {f.count(len(lost))} tried" if lost else ""


def _facts(file: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs, cost = file["pairs"], file["cost"]
    peak = cost.get("peak_bytes") or cost.get("process_peak_bytes")
    rows = [
        ("Scorer of parts", file["scorer"]),
        ("Chosen by", {"block": "all heads of a layer together"}.get(file["granularity"], "head and MLP")),
        ("Pairs", say.pairs_text(pairs)),
        ("Cost of the scores", _passes(cost)),
        (
            "Peak memory",
            f.size(peak) + (" (whole process)" if "peak_bytes" not in cost else "") if peak else "",
        ),
    ]
    return [(k, v) for k, v in rows if v]


def _passes(cost: Mapping[str, Any]) -> str:
    """Passes of the two scorings, and seconds of everything."""
    said = [
        f"{cost[key]:g} forward-equivalents an example{of}"
        for key, of in (("forward_equivalents", ""), ("edges_forward_equivalents", " for connections"))
        if finite(cost.get(key))
    ]
    if finite(cost.get("time_s")):
        said.append(f"{f.count(cost['time_s'])} s for all of it, judging included")
    return "; ".join(said)
