"""The dot plot that most pictures of the report are: one row a model, so that labels cannot collide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curerec.reports.svg import (
    SMALL_PX,
    TEXT_PX,
    Scale,
    el,
    finite,
    label,
    picture,
    shorten,
    text_width,
    words,
)

_GAP = 14.0
_NARROW = 420.0  # below this width labels stand above their row instead of beside it


@dataclass(frozen=True)
class Row:
    """One line of a dot plot.

    Attributes:
        name: label at the left.
        value: where the dot is; a row without a finite value is left out.
        low, high: 95 % interval, drawn where both are finite.
        kind: ``ours`` (the run reported on), ``core`` (filled), ``reference`` (hollow) or ``other`` (grey).
        about: hover text.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    kind: str = "other"
    about: str = ""


@dataclass(frozen=True)
class Mark:
    """A named vertical line, e.g. 0.5 of a membership AUC."""

    at: float
    text: str


def dot_plot(
    rows: Sequence[Row],
    *,
    name: str,
    about: str,
    domain: tuple[float, float],
    show: Callable[[float], str],
    marks: Sequence[Mark] = (),
    origin: float | None = None,
    width: float = 460.0,
) -> str:
    """Rows of dots over one horizontal scale.

    Args:
        rows: what to draw, from top to bottom.
        name, about: of the picture, read aloud by a screen reader.
        domain: ends of the scale; what lies outside is drawn at the edge as an arrow.
        show: how a value is written.
        marks: named vertical lines.
        origin: where a thin line to every dot starts; none without it.
        width: px; below 420 the labels stand above the rows.

    Returns:
        SVG text; empty where no row has a value.
    """
    rows = [row for row in rows if finite(row.value)]
    if not rows:
        return ""
    narrow = width < _NARROW
    value_width = max(text_width(show(row.value or 0.0), TEXT_PX) for row in rows)
    label_width = 0.0 if narrow else min(0.42 * width, max(text_width(row.name) for row in rows) * 1.06)
    left = 6.0 if narrow else label_width + _GAP
    right = width - (10.0 if narrow else value_width + _GAP)
    x = Scale(*domain, left, right)
    mark_parts, top = _marks(marks, x, width)
    pitch = 44.0 if narrow else 30.0
    bottom = top + pitch * len(rows)
    # Bands first, then the lines of the scale, so that a band hides none of them; where labels stand
    # above their rows, the lines keep to the space below the labels.
    tops = [top + pitch * i for i in range(len(rows))]
    spans = [(y + 22, y + pitch - 6) for y in tops] if narrow else [(top, bottom)]
    parts = [
        el("rect", x=0.0, y=y + 1, width=width, height=pitch - 2, rx=4.0, class_="band")
        for row, y in zip(rows, tops, strict=True)
        if row.kind == "ours"
    ]
    parts.append(_axis(x, spans, bottom))
    parts += [el("line", x1=x(m.at), x2=x(m.at), y1=a, y2=b, class_="mark") for m in marks for a, b in spans]
    parts += mark_parts
    for row, y in zip(rows, tops, strict=True):
        text_y = y + 16 if narrow else y + pitch / 2 + 4.5
        dot_y = y + 30 if narrow else y + pitch / 2
        parts.append(_row(row, x, y, pitch, text_y, dot_y, label_width or width * 0.7, width, show, origin))
    return picture(width, bottom + 26, name, about, *parts)


def _row(
    row: Row,
    x: Scale,
    y: float,
    pitch: float,
    text_y: float,
    dot_y: float,
    label_width: float,
    width: float,
    show: Callable[[float], str],
    origin: float | None,
) -> str:
    value = row.value or 0.0
    parts = [el("title", words(row.about or f"{row.name}: {show(value)}"))]
    parts.append(el("rect", x=0.0, y=y + 1, width=width, height=pitch - 2, class_="hit"))
    if origin is not None:
        parts.append(el("line", x1=x(origin), x2=x(value), y1=dot_y, y2=dot_y, class_=f"stem {row.kind}"))
    bounds = finite(row.low, row.high)
    if len(bounds) == 2:
        parts.append(
            el("line", x1=x(bounds[0]), x2=x(bounds[1]), y1=dot_y, y2=dot_y, class_=f"range {row.kind}")
        )
    parts.append(_dot(x, value, dot_y, row.kind))
    strong = "strong" if row.kind == "ours" else None
    parts.append(
        label(
            6.0,
            text_y,
            shorten(row.name, label_width),
            class_=strong,
        )
    )
    parts.append(label(width - 6, text_y, show(value), anchor="end", class_=strong))
    return el("g", *parts, class_="row")


def _dot(x: Scale, value: float, y: float, kind: str) -> str:
    at = x(value)
    if x.low <= value <= x.high:
        return el("circle", cx=at, cy=y, r=5.0, class_=f"dot {kind}")
    # Off the scale: an arrow at the edge, the number beside it tells how far.
    way = 7.0 if value > x.high else -7.0
    return el(
        "path",
        d=f"M{at - way:.1f} {y - 5:.1f}L{at:.1f} {y:.1f}L{at - way:.1f} {y + 5:.1f}Z",
        class_=f"dot {kind}",
    )


def _axis(x: Scale, spans: Sequence[tuple[float, float]], bottom: float) -> str:
    ticks = x.ticks(5)
    digits = decimals(ticks)
    parts = [el("line", x1=x.start, x2=x.end, y1=bottom, y2=bottom, class_="axis")]
    end = float("-inf")
    for tick in ticks:
        at, text = x(tick), tick_text(tick, digits)
        half = text_width(text, SMALL_PX) / 2
        parts += [el("line", x1=at, x2=at, y1=a, y2=b, class_="grid") for a, b in spans]
        if at - half > end + 6:
            parts.append(label(at, bottom + 17, text, anchor="middle", size=SMALL_PX, class_="quiet"))
            end = at + half
    return "".join(parts)


def _marks(marks: Sequence[Mark], x: Scale, width: float) -> tuple[list[str], float]:
    """Labels of the vertical lines, on as many lines as they need, and the y below them."""
    ends: list[float] = []
    placed = []
    for mark in sorted(marks, key=lambda m: m.at):
        text = shorten(mark.text, width - 8, SMALL_PX)
        half = text_width(text, SMALL_PX) / 2
        at = min(max(x(mark.at), half + 2), width - half - 2)
        line = next((i for i, end in enumerate(ends) if at - half > end + 8), len(ends))
        ends[line : line + 1] = [at + half]
        placed.append((at, line, text, x(mark.at)))
    top = 15.0 * len(ends) + (7.0 if ends else 2.0)
    parts = []
    for at, line, text, foot in placed:
        y = 12.0 + 15.0 * line
        if line < len(ends) - 1:
            parts.append(el("line", x1=foot, x2=foot, y1=y + 3, y2=top, class_="mark"))
        parts.append(label(at, y, text, anchor="middle", size=SMALL_PX, class_="markname"))
    return parts, top


def decimals(ticks: Sequence[float]) -> int:
    """Decimals that tell ticks apart.

    Example:
        >>> decimals([0.5, 0.52]), decimals([0, 5])
        (2, 0)
    """
    return next((d for d in range(7) if all(abs(t - round(t, d)) < 1e-9 for t in ticks)), 7)


def tick_text(tick: float, digits: int) -> str:
    """A tick with a true minus sign."""
    return f"{tick + 0.0:.{digits}f}".replace("-", "−")
