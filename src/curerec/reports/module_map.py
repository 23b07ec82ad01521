"""The module map: layers upwards, heads and projections across, each cell a bar of roles."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from curerec.reports.figures import fixed, interval, plural
from curerec.reports.grid import BLOCK_GAP, GAP, LEFT, ORDER, ROLE_NAMES, Column, Grid, build_grid, columns_px
from curerec.reports.parts import Cell, Score
from curerec.reports.svg import SMALL_PX, el, finite, label, picture, shorten, text_width, words


def module_map(
    cells: Sequence[Cell],
    scores: Sequence[Score] = (),
    core: Collection[str] = (),
    *,
    unit: str = "row",
    width: float = 960.0,
) -> str:
    """Draw which parts of the model were given which role, with the core circuit outlined.

    A head's column holds the cells that name it (its rows of q_proj; of k_proj and v_proj too where every
    head has its own), a projection's column holds the whole matrix, so a row of q_proj shows in both.

    Args:
        cells: counts by role of every matrix (and head).
        scores: circuit scores, for the hover texts.
        core: names of the modules of the core circuit, e.g. ``layers.0.head.3``, ``layers.1.mlp``.
        unit: what the counts count (``row``, ``rank``, ...).
        width: px to aim at; a model with many heads needs more and the page scrolls it.

    Returns:
        SVG text; empty where there is nothing to draw.
    """
    grid = build_grid(cells, scores, core)
    if not grid.tiles and not grid.wide:
        return ""
    xs, full = columns_px(grid, width)
    pitch = (
        48.0
        if len(grid.layers) <= 3
        else 38.0
        if len(grid.layers) <= 6
        else 26.0
        if len(grid.layers) <= 16
        else 18.0
    )
    space = 8.0 if pitch > 20 else 5.0
    top = 44.0
    parts = [_defs(), _headers(grid, xs)]
    above = [n for n in grid.wide if not _below(n)]
    below = [n for n in grid.wide if _below(n)]
    y = top
    for name in above:
        parts.append(_wide(name, grid.wide[name], y, full, unit))
        y += 24.0
    known = {score.module: score for score in scores}
    outlines = []
    for layer in sorted(grid.layers, reverse=True):
        if pitch >= 18.0:
            parts.append(label(0.0, y + pitch / 2 + 2.5, f"Layer {layer}", class_="quiet"))
        for _, columns in grid.blocks:
            for column in columns:
                x, wide = xs[column]
                parts.append(_tile(grid, layer, column, x, y, wide, pitch - space, unit, known, core))
        outlines += _outlines(layer, core, grid, xs, y, pitch - space, known)
        y += pitch
    for name in below:
        parts.append(_wide(name, grid.wide[name], y + 3, full, unit))
        y += 24.0
    about = "Layers from bottom to top; each cell is a bar of the shares of its parts by role."
    return picture(
        full, y + 6, "Which parts of the model were changed", about, *parts, *outlines, class_="chart map"
    )


def legend() -> list[tuple[str, str]]:
    """(role, swatch as SVG text) in the order of the bars, then the outline of the core circuit."""
    swatches = [
        (role, picture(22, 14, ROLE_NAMES[role], "", _fill(role, 0, 0, 22, 14), class_="swatch"))
        for role in ORDER
    ]
    outline = el("rect", x=1.5, y=1.5, width=19.0, height=11.0, rx=3.0, class_="core")
    return [*swatches, ("core", picture(22, 14, "core circuit", "", outline, class_="swatch"))]


def _headers(grid: Grid, xs: Mapping[Column, tuple[float, float]]) -> str:
    parts = []
    for name, columns in grid.blocks:
        start, end = xs[columns[0]][0], sum(xs[columns[-1]])
        parts.append(label(start, 12.0, shorten(name, end - start + BLOCK_GAP - 4), class_="strong"))
        # Numbers of many narrow heads: as many as fit.
        step = max(1, math.ceil((text_width("00", SMALL_PX) + 4) / (xs[columns[0]][1] + GAP)))
        for i, column in enumerate(columns):
            x, wide = xs[column]
            if column[0] == "head" and i % step:
                continue
            text = str(column[1]) if column[0] == "head" else column[0].removesuffix("_proj")
            fitted = text if column[0] == "head" else shorten(text, wide + GAP, SMALL_PX)
            parts.append(label(x + wide / 2, 32.0, fitted, anchor="middle", size=SMALL_PX, class_="quiet"))
    return "".join(parts)


def _tile(
    grid: Grid,
    layer: int,
    column: Column,
    x: float,
    y: float,
    wide: float,
    high: float,
    unit: str,
    known: Mapping[str, Score],
    core: Collection[str],
) -> str:
    counts = grid.tiles.get((layer, column), {})
    what = f"head {column[1]}" if column[0] == "head" else column[0]
    name = f"layers.{layer}.head.{column[1]}" if column[0] == "head" else f"layers.{layer}.{column[0]}"
    lines = [f"Layer {layer}, {what}", *_score_lines(name, known, core), _counted(counts, unit)]
    return _bar(lines, counts, x, y, wide, high)


def _wide(name: str, counts: Mapping[str, int], y: float, full: float, unit: str) -> str:
    title = _wide_name(name)
    shown = label(0.0, y + 11.5, shorten(title, LEFT - 6), class_="quiet")
    return shown + _bar([title, _counted(counts, unit)], counts, LEFT, y, full - LEFT - 4 - GAP, 14.0)


def _bar(lines: list[str], counts: Mapping[str, int], x: float, y: float, wide: float, high: float) -> str:
    parts = [el("title", words("\n".join(lines)))]
    total = sum(counts.values())
    if not total:
        parts.append(el("rect", x=x + 0.5, y=y + 0.5, width=wide - 1, height=high - 1, class_="void"))
    at = x
    for role in ORDER if total else ():
        share = counts.get(role, 0) / total * wide
        if share > 0:
            parts.append(_fill(role, at, y, share, high))
            at += share
    return el("g", *parts, class_="cell")


def _fill(role: str, x: float, y: float, wide: float, high: float) -> str:
    # The hatch is a second signal beside the colour, for print and for colour-blind readers.
    plain = el("rect", x=x, y=y, width=wide, height=high, class_=f"role-{role}")
    if role == "frozen":
        return plain
    return plain + el("rect", x=x, y=y, width=wide, height=high, fill=f"url(#hatch-{role})")


def _outlines(
    layer: int,
    core: Collection[str],
    grid: Grid,
    xs: Mapping[Column, tuple[float, float]],
    y: float,
    high: float,
    known: Mapping[str, Score],
) -> list[str]:
    """Frames around the core circuit's heads, and around all of an MLP's matrices as one."""
    found = []
    for column in grid.heads:
        if f"layers.{layer}.head.{column[1]}" in core:
            found.append((f"layers.{layer}.head.{column[1]}", xs[column][0], sum(xs[column])))
    if grid.mlp and f"layers.{layer}.mlp" in core:
        found.append((f"layers.{layer}.mlp", xs[grid.mlp[0]][0], sum(xs[grid.mlp[-1]])))
    grow = 2.0
    return [
        el(
            "rect",
            el("title", words("\n".join([name, *_score_lines(name, known, core)]))),
            x=start - grow,
            y=y - grow,
            width=end - start + 2 * grow,
            height=high + 2 * grow,
            rx=4.0,
            class_="core",
        )
        for name, start, end in found
    ]


def _score_lines(name: str, known: Mapping[str, Score], core: Collection[str]) -> list[str]:
    lines = ["in the core circuit"] if name in core else []
    score = known.get(name)
    if score and finite(score.score):
        between = (
            f" (95 % interval {interval(score.low, score.high)})"
            if len(finite(score.low, score.high)) == 2
            else ""
        )
        lines.append(f"score {fixed(score.score)}{between}")
    if score and finite(score.exact):
        lines.append(f"exact patching {fixed(score.exact)}")
    return lines


def _counted(counts: Mapping[str, int], unit: str) -> str:
    total = sum(counts.values())
    named = ", ".join(f"{counts[r]:,} {ROLE_NAMES[r]}" for r in ORDER if counts.get(r))
    return f"{plural(total, unit)}: {named}" if total else "not among the parts that were sorted"


def _defs() -> str:
    patterns = {
        "forget": el("path", d="M-1 5L5 -1M2 8L8 2", class_="hatch"),
        "shared": el("path", d="M0 1.5H6M0 4.5H6", class_="hatch"),
        "retain": el("circle", cx=3.0, cy=3.0, r=1.0, class_="hatchdot"),
    }
    return el(
        "defs",
        *(
            el("pattern", body, id=f"hatch-{role}", width=6.0, height=6.0, patternUnits="userSpaceOnUse")
            for role, body in patterns.items()
        ),
    )


def _below(name: str) -> bool:
    return any(part in name for part in ("embed", "wte", "wpe"))


def _wide_name(name: str) -> str:
    return (
        "Embedding"
        if name in {"embed_tokens", "wte"}
        else "Output"
        if name == "lm_head"
        else "Final norm"
        if name
        in {
            "norm",
            "ln_f",
        }
        else name
    )
