"""What a circuit says, in words: only what its file holds, each claim with its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from curerec.reports import figures as f
from curerec.reports.circuit_graph import heads_of, title_of
from curerec.reports.grid import ORDER, ROLE_NAMES
from curerec.reports.svg import finite

PARTS = {
    "liked": "the liked list",
    "disliked": "the disliked list",
    "candidate": "the candidate",
    "frame": "the template's words",
}
UNIT_SIZES = {
    "head_mlp": "attention heads and MLPs, and what belongs to neither",
    "projection": "whole projections",
    "row": "single rows of weights",
    "rank": "rank-one terms of the adapter",
}
CORRUPTIONS = {
    "prompt": "each altered twin is another user's prompt of the same length, with the other answer",
    "history": "in each altered twin the earlier likes that speak for the answer gave way to equally popular "
    "items that do not, found by PageRank on the graph of users and items",
}


def part_text(part: str) -> str:
    """A part of the prompt in words; its own name where an imported file has another."""
    return PARTS.get(part, part)


def corruption_text(file: Mapping[str, Any]) -> str:
    """What was altered in the twins; empty where the file does not say."""
    said = CORRUPTIONS.get(file["corruption"] or "", "")
    return f"{said}, begun at the user" if said and file["about"].get("pagerank_from") == "user" else said


def sentence(file: Mapping[str, Any]) -> str:
    """The page's first sentence."""
    core, total = sum(n["in_graph"] for n in file["nodes"]), len(file["nodes"])
    kept = file["nodes_measured"]["faithfulness"]
    said = f"{f.count(core)} of {f.plural(total, 'part')} "
    said += "belongs" if core == 1 else "belong"
    said += " to the circuit"
    if not finite(kept):
        return said + "; it was imported, and what it carries was not measured here."
    return (
        f"{said}; alone {'it keeps' if core == 1 else 'they keep'} {f.percent(kept)} of the answer's margin."
    )


def reading(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each head of the circuit reads, a sentence a head, the most important first."""
    heads = [n for n in nodes if n["reads"] and n["in_graph"]]
    out = []
    for n in sorted(heads, key=lambda n: (n["rank"] is None, n["rank"])):
        r = n["reads"]
        if r["part"] is None:
            out.append(f"{title_of(n['name'])} gives no part of the prompt more attention than its share.")
            continue
        between = f"{f.percent(r['low'])} to {f.percent(r['high'])}"
        out.append(
            f"{title_of(n['name'])} reads {part_text(r['part'])}: {f.percent(r['mass'])} of its attention "
            f"from the answer position (95 % interval {between}), with {f.percent(r['tokens'])} of the "
            f"tokens; more than that share in {f.percent(r['prompts'])} of the prompts."
        )
    return out


def reading_summary(nodes: Sequence[Mapping[str, Any]]) -> str:
    """How many heads of the circuit read what; empty where it was not measured."""
    heads = [n for n in nodes if n["reads"] and n["in_graph"]]
    if not heads:
        return ""
    counted: dict[str | None, int] = {}
    for n in heads:
        counted[n["reads"]["part"]] = counted.get(n["reads"]["part"], 0) + 1
    said = [f"{count} {part_text(part)}" for part, count in counted.items() if part is not None]
    if None in counted:
        said.append(f"{counted[None]} no part more than its share")
    return (
        f"Of the {f.plural(len(heads), 'head')} in the circuit, by what the answer position looks at above "
        f"its share of the tokens: {', '.join(said)}. Where a head looks is not yet what it does there; the "
        "scores say whether it matters."
    )


def matters_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what was patched, test AUC, remark)."""
    if not found:
        return []

    def auc(name: str) -> str:
        return f.fixed(found.get(name))

    spread = (
        f"{auc('auc_random_low')} to {auc('auc_random_high')} over {f.plural(found.get('draws'), 'draw')}"
    )
    return [
        ("nothing (the whole model)", auc("auc"), ""),
        ("everything", auc("auc_floor"), _floor(found)),
        ("the circuit", auc("auc_without"), _way(found, "lost", " to the floor")),
        ("random sets of its size", auc("auc_random"), _joined(spread, _way(found, "lost_random"))),
        ("all but the circuit", auc("auc_kept"), f"keeps {_share(found.get('margin_kept'))} of the margin"),
    ]


def compact_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """As :func:`matters_rows`, of the fewest parts that carry the answer together."""
    m, many = found["matters"], f.plural(len(found["members"]), "part")
    if not m:
        return []
    alone = f"keeps {_share(m.get('margin_kept'))} of the margin"
    rows = _set_rows(f"the {many} that are enough", many, m)
    return [*rows, (f"all but the {many} that are enough", f.fixed(m.get("auc_kept")), alone)]


def _set_rows(name: str, many: str, m: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A set knocked out, and random ones of its size."""
    low, high = f.fixed(m.get("auc_random_low")), f.fixed(m.get("auc_random_high"))
    spread = f"{low} to {high} over {f.plural(m.get('draws'), 'draw')}"
    return [
        (name, f.fixed(m.get("auc_without")), _way(m, "lost", " to the floor")),
        (f"random sets of {many}", f.fixed(m.get("auc_random")), _joined(spread, _way(m, "lost_random"))),
    ]


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


def no_fall(found: Mapping[str, Any]) -> bool:
    """Whether everything patched is known not to take the AUC down measurably.

    No part of a fall can then be put down to a circuit, whatever an earlier version's file says in ``lost``.

    Example:
        >>> no_fall({"auc": 0.66, "auc_floor": 0.67, "lost": 0.9}), no_fall({"auc": 0.7, "auc_floor": 0.5})
        (True, False)
    """
    known = finite(found.get("auc"), found.get("auc_floor"))
    unknown = "lost" in found and not finite(found["lost"])
    return len(known) == 2 and (known[0] <= known[1] or unknown)


def _floor(found: Mapping[str, Any]) -> str:
    said = "what is left without any part"
    return f"{said}: not measurably less" if no_fall(found) else f"{said}: the floor"


def _way(found: Mapping[str, Any], key: str, to: str = "") -> str:
    """How far a loss takes the AUC down; empty where there is no way to go."""
    return "" if no_fall(found) else f"{_share(found.get(key))} of the way{to}"


def compact_text(found: Mapping[str, Any]) -> str:
    """Which parts carry the answer together, and what random sets of as many would."""
    names = [title_of(n) for n in found["members"]]
    listed = "; ".join(names[:12]) + (f"; and {len(names) - 12} more" if len(names) > 12 else "")
    m = found["matters"]
    other = f" Random sets of as many keep {_share(m.get('margin_random_kept'))}." if m else ""
    return (
        f"The fewest parts found that carry the answer together are {f.count(len(names))} of "
        f"{f.count(found['total'])}, by taking one after another out; alone they keep "
        f"{_share(found['faithfulness'])} of the margin on pairs that did not order them, only said how many "
        f"are enough: {listed}.{other}"
    )


def necessary_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """As :func:`matters_rows`, of the smallest set that the answer cannot do without."""
    if not found["matters"]:
        return []
    many = f.plural(len(found["members"]), "part" if found["level"] == "parts" else "connection")
    return _set_rows(f"the {many} it cannot do without", many, found["matters"])


def necessary_text(found: Mapping[str, Any], shape: Mapping[str, Any] | None = None) -> str:
    """Which parts the answer cannot do without.

    Args:
        found: of ``circuit.json``.
        shape: of the model, for :func:`edge_title`.
    """
    unit = "part" if found["level"] == "parts" else "connection"
    names = [edge_title(n, shape) if "->" in n else title_of(n) for n in found["members"]]
    listed = "; ".join(names[:8]) + (f"; and {len(names) - 8} more" if len(names) > 8 else "")
    lost, other = (finite(found["matters"].get(k)) for k in ("lost", "lost_random"))
    verdict = ""
    if lost and other and not no_fall(found["matters"]):
        verdict = (
            f" On test prompts their loss takes {_share(lost[0])} of what the model knows, that of random "
            f"sets of as many {_share(other[0])}."
        )
    return (
        f"Taken by score, {f.plural(len(names), f'supporting {unit}')} of {f.count(found['total'])} are "
        f"the first whose loss takes {_share(found['lost'])} of the margin: {listed}.{verdict}"
    )


def edge_title(name: str, shape: Mapping[str, Any] | None = None) -> str:
    """A connection's name, ``source->reader``, in words.

    Args:
        name: of the connection.
        shape: of the model, for which heads share keys and values; None: the group is named by its number.

    Example:
        >>> edge_title("layers.0.mlp->layers.1.kv.1.k", {"n_heads": 9, "n_kv_heads": 3})
        'Layer 0, MLP to the keys of layer 1, heads 3 to 5'
        >>> edge_title("layers.0.mlp->layers.1.kv.1.k")
        'Layer 0, MLP to the keys of layer 1, key/value head 1'
    """
    source, reader = name.split("->", 1)
    kinds = {"q": "queries", "k": "keys", "v": "values"}
    if shared := re.fullmatch(r"layers\.(\d+)\.kv\.(\d+)\.([kv])", reader):
        whose = _sharing(int(shared[2]), shape)
        return f"{title_of(source)} to the {kinds[shared[3]]} of layer {shared[1]}, {whose}"
    place, _, kind = reader.rpartition(".")
    if kind in kinds:
        return f"{title_of(source)} to the {kinds[kind]} of {title_of(place).lower()}"
    return f"{title_of(source)} to {title_of(reader).lower()}"


def _sharing(group: int, shape: Mapping[str, Any] | None) -> str:
    if shape is None:
        return f"key/value head {group}"
    heads = heads_of(group, shape["n_heads"], shape["n_kv_heads"])
    if len(heads) == 1:
        return f"head {heads[0]}"
    return f"heads {heads[0]} {'and' if len(heads) == 2 else 'to'} {heads[-1]}"


def _share(value: float | None) -> str:
    return f"{100 * value:.0f}{f.NBSP}%" if value is not None and finite(value) else f.NONE


def verdict(found: Mapping[str, Any], what: str) -> str:
    """Whether the circuit matters to the task, from the knock-out, in one sentence."""
    if no_fall(found):
        return (
            f"Everything patched does not measurably lower the AUC ({f.fixed(found['auc_floor'])}; nothing "
            f"patched: {f.fixed(found['auc'])}), so these pairs cannot show what carries it."
        )
    known = finite(found.get("lost"), found.get("lost_random"))
    if len(known) < 2:
        return ""
    lost, other = known
    if lost >= 0.8 and other <= 0.5:
        return (
            f"Knocked out, {what} takes most of what the model knows with it; random sets of its size do not."
        )
    if lost >= 0.8:
        return (
            f"Knocked out, {what} takes most of what the model knows with it, but random sets of its size "
            "take much of it, too: it is a large part of the model."
        )
    return f"Knocked out, {what} takes only a part of what the model knows with it."


def measures(file: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(figure, meaning) of what was measured of the nodes."""
    m, k = file["nodes_measured"], file["knockouts"]
    rows = [
        (m["faithfulness"], f.percent, "of the margin is kept by the circuit alone (faithfulness)."),
        (m["completeness"], f.percent, "of it is lost when the circuit is fed altered input."),
        (
            m["jaccard"],
            f.percent,
            "overlap of the circuit over resamples of the pairs" + chance_text(m) + ".",
        ),
        (m["cpr"], f.fixed, "mean faithfulness over all sizes (CPR; higher is better)."),
        (m["cmd"], f.fixed, "mean distance of faithfulness from 1 (CMD; lower is better)."),
        (
            k.get("random"),
            f.percent,
            "largest gap to the whole model after losing a random half (completeness).",
        ),
        (k.get("greedy"), f.percent, "the same for the worst few parts that a greedy search found."),
        (
            file["agreement"].get("spearman"),
            lambda v: f.fixed(v, 2),
            "rank correlation of the scores with exact patching.",
        ),
        *(
            (
                file["agreement"].get(f"{kind}_spearman"),
                lambda v: f.fixed(v, 2),
                f"the same of {name} alone.",
            )
            for kind, name in (("head", "heads"), ("mlp", "MLPs"))
        ),
    ]
    return [(show(value), meaning) for value, show, meaning in rows if finite(value)]


def chance_text(m: Mapping[str, Any]) -> str:
    """What an overlap over resamples has to be compared with; empty where that was not measured.

    Example:
        >>> chance_text({"jaccard": 0.95, "jaccard_chance": 0.82})
        '; random circuits of its size overlap by 82\\xa0%'
    """
    chance = m.get("jaccard_chance")
    if not finite(m["jaccard"], chance) or chance is None:
        return ""
    if chance >= 1 - 1e-9:
        return ", which says nothing: it is all there is to choose from"
    return f"; random circuits of its size overlap by {f.percent(chance)}"


def pairs_text(pairs: Mapping[str, int]) -> str:
    """What became of the prompts that altered twins were asked for.

    Example:
        >>> pairs_text({"asked": 9, "made": 8, "flipped": 5, "kept": 4, "judged": 2})
        '9 asked for, 8 made; of these 5 turned the answer round; 4 used, 2 of them to judge'
    """
    first = {
        "asked": "asked for",
        "unaligned": "without a twin of the same length",
        "made": "made",
    }
    then = {
        "moved": "moved the margin by more than .001",
        "fell": "lowered it",
        "flipped": "turned the answer round",
    }
    last = {"kept": "used", "judged": "of them to judge"}
    listed = [
        ", ".join(f"{f.count(pairs[k])} {text}" for k, text in names.items() if k in pairs)
        for names in (first, then, last)
    ]
    if listed[1]:  # of all that were made where that is known; else of those that judge
        listed[1] = ("of these " if "made" in pairs else "of those that judge ") + listed[1]
    return "; ".join(text for text in listed if text)


def units_text(file: Mapping[str, Any]) -> str:
    """What the units are and what their score means; empty where none were scored."""
    units, size = file["units"], file["units_granularity"] or "unit"
    if not units:
        return ""
    prompts = file["units_prompts"]
    on = f", on {f.plural(prompts, 'validation prompt')}" if prompts else ""
    return (
        f"{f.plural(len(units), 'update unit')} ({UNIT_SIZES.get(size, size)}). A score is the first-order "
        f"change of the margin, in logits, if what fine-tuning changed there were taken back{on}: what "
        "supports the answer scores below 0. Exact: the change with the unit really taken back."
    )


def group_text(groups: Mapping[str, int]) -> str:
    """Counts of update units by role.

    Example:
        >>> group_text({"forget": 3, "frozen": 1})
        '3 forget-specific, 1 frozen'
    """
    return ", ".join(f"{groups[r]:,} {ROLE_NAMES[r]}" for r in ORDER if groups.get(r))
