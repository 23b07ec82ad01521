"""Points in a plane with their intervals, labelled where there is room."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curerec.reports.dots import decimals, tick_text
from curerec.reports.svg import SMALL_PX, Scale, el, finite, label, padded, picture, text_width, words

_TOP, _BOTTOM, _RIGHT = 14.0, 44.0, 14.0
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Dot:
    """One point.

    Attributes:
        name: of its label.
        x, y: where it is; a point without two finite values is left out.
        x_half, y_half: half-widths of the 95 % intervals, drawn where finite.
        kind: ``ours``, ``reference`` or ``other``.
    """

    name: str
    x: float | None
    y: float | None
    x_half: float | None = None
    y_half: float | None = None
    kind: str = "other"


@dataclass(frozen=True)
class Axis:
    """One direction of the plane.

    Attributes:
        name: written beside it.
        show: how a value is written in a hover text.
        least: smallest width of the domain, so that noise does not look like a difference.
        always: values that the domain holds.
        most: values beyond are drawn at the edge as arrows.
        log: whether equal steps are equal factors (values above 0).
        mark: a value to draw a line at.
    """

    name: str
    show: Callable[[float | None], str]
    least: float = 0.02
    always: tuple[float, ...] = ()
    most: tuple[float, float] = (-math.inf, math.inf)
    log: bool = False
    mark: float | None = None

    def at(self, value: float) -> float:
        """Where a value lies, before it is scaled."""
        return math.log10(value) if self.log else value

    def domain(self, values: Sequence[float]) -> tuple[float, float]:
        """Ends of the scale around values."""
        kept = [min(max(v, self.most[0]), self.most[1]) for v in (*values, *self.always)]
        return padded([self.at(v) for v in kept], least=self.least)

    def ticks(self, scale: Scale, count: int) -> list[tuple[float, str]]:
        """Positions and what is written there."""
        if not self.log:
            ticks = scale.ticks(count)
            return [(scale(t), tick_text(t, decimals(ticks))) for t in ticks]
        steps = (1, 2, 5) if scale.high - scale.low < 3 else (1,)
        values = [s * 10.0**k for k in range(math.floor(scale.low), math.ceil(scale.high) + 1) for s in steps]
        inside = [v for v in values if scale.low <= math.log10(v) <= scale.high]
        return [(scale(math.log10(v)), f"{v:g}") for v in inside]


def scatter(
    dots: Sequence[Dot],
    x: Axis,
    y: Axis,
    *,
    name: str,
    about: str,
    width: float = 460.0,
    joined: Sequence[Sequence[tuple[float, float]]] = (),
) -> str:
    """A picture of points; the first get their labels first, who finds no room has only a hover text.

    Args:
        dots: points, most important first.
        x, y: axes.
        name, about: of the picture, read aloud by a screen reader.
        width: px.
        joined: curves, each its points in order, drawn as lines under the dots; inside the dots' domain.

    Returns:
        SVG text; empty without a point.
    """
    kept = [d for d in dots if len(finite(d.x, d.y)) == 2 and not (x.log and (d.x or 0) <= 0)]
    if not kept:
        return ""
    height = 0.78 * width + 40
    up = Scale(*y.domain([d.y for d in kept if d.y is not None]), height - _BOTTOM, _TOP)
    marks_y = y.ticks(up, 5)
    left = max(text_width(t, SMALL_PX) for _, t in marks_y) + 14
    across = Scale(*x.domain([d.x for d in kept if d.x is not None]), left, width - _RIGHT)
    area: Box = (left + 2, _TOP - 8, width - 2, height - _BOTTOM)
    parts = [_grid(across, up, x, y, marks_y, width, height)]
    places = [(across(x.at(d.x or 0.0)), up(y.at(d.y or 0.0))) for d in kept]
    taken: list[Box] = [(a - 6, b - 6, a + 6, b + 6) for a, b in places]
    drawn, names = [], []
    for dot, (a, b) in zip(kept, places, strict=True):
        hover = f"{dot.name}: {x.name} {x.show(dot.x)}, {y.name} {y.show(dot.y)}"
        bars = [_bar(dot.x, dot.x_half, x, across, dot.kind, y1=b, y2=b)]
        bars.append(_bar(dot.y, dot.y_half, y, up, dot.kind, x1=a, x2=a))
        drawn.append(el("g", el("title", words(hover)), *bars, _point(dot, a, b, x, y), class_="row"))
        where = _room(dot.name, a, b, area, taken)
        if where is not None:
            anchor, lx, ly, box = where
            taken.append(box)
            style = "strong halo" if dot.kind == "ours" else "halo"
            names.append(label(lx, ly, dot.name, anchor=anchor, size=SMALL_PX, class_=style))
    for curve in joined:
        way = "L".join(f"{across(x.at(a)):.1f} {up(y.at(b)):.1f}" for a, b in curve)
        parts.append(el("path", d=f"M{way}", class_="curve"))
    return picture(width, height, name, about, *parts, *reversed(drawn), *names)


def _grid(
    across: Scale,
    up: Scale,
    x: Axis,
    y: Axis,
    marks_y: Sequence[tuple[float, str]],
    width: float,
    height: float,
) -> str:
    bottom = height - _BOTTOM
    parts = []
    for at, text in marks_y:
        parts.append(el("line", x1=across.start, x2=across.end, y1=at, y2=at, class_="grid"))
        parts.append(label(across.start - 6, at + 4, text, anchor="end", size=SMALL_PX, class_="quiet"))
    end = -math.inf
    for at, text in x.ticks(across, 5):
        half = text_width(text, SMALL_PX) / 2
        parts.append(el("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="grid"))
        if at - half > end + 6 and at + half < width:
            parts.append(label(at, bottom + 16, text, anchor="middle", size=SMALL_PX, class_="quiet"))
            end = at + half
    parts.append(el("line", x1=across.start, x2=across.end, y1=bottom, y2=bottom, class_="axis"))
    parts.append(el("line", x1=across.start, x2=across.start, y1=_TOP, y2=bottom, class_="axis"))
    if x.mark is not None and across.low <= x.at(x.mark) <= across.high:
        at = across(x.at(x.mark))
        parts.append(el("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="mark"))
    if y.mark is not None and up.low <= y.at(y.mark) <= up.high:
        at = up(y.at(y.mark))
        parts.append(el("line", x1=across.start, x2=across.end, y1=at, y2=at, class_="mark"))
    middle = (across.start + across.end) / 2
    parts.append(label(middle, height - 8, x.name, anchor="middle", size=SMALL_PX, class_="quiet"))
    return "".join(parts)


def _bar(value: float | None, half: float | None, axis: Axis, scale: Scale, kind: str, **fixed: float) -> str:
    found = finite(value, half)
    if len(found) < 2:
        return ""
    ends = [found[0] - found[1], found[0] + found[1]]
    if axis.log:
        ends[0] = max(ends[0], 10**scale.low)
    low, high = (scale(axis.at(e)) for e in ends)
    at = {"y1": low, "y2": high} if "x1" in fixed else {"x1": low, "x2": high}
    return el("line", **fixed, **at, class_=f"range {kind}")


def _point(dot: Dot, a: float, b: float, x: Axis, y: Axis) -> str:
    beyond = [axis.most[1] < (v or 0.0) or (v or 0.0) < axis.most[0] for axis, v in ((x, dot.x), (y, dot.y))]
    if not any(beyond):
        return el("circle", cx=a, cy=b, r=5.0 if dot.kind == "ours" else 4.0, class_=f"dot {dot.kind}")
    if beyond[1]:
        way = -6.0 if (dot.y or 0.0) > y.most[1] else 6.0
        shape = f"M{a - 5:.1f} {b - way:.1f}L{a:.1f} {b:.1f}L{a + 5:.1f} {b - way:.1f}Z"
    else:
        way = 6.0 if (dot.x or 0.0) > x.most[1] else -6.0
        shape = f"M{a - way:.1f} {b - 5:.1f}L{a:.1f} {b:.1f}L{a - way:.1f} {b + 5:.1f}Z"
    return el("path", d=shape, class_=f"dot {dot.kind}")


def _room(
    text: str, a: float, b: float, area: Box, taken: Sequence[Box]
) -> tuple[str, float, float, Box] | None:
    """A free place for a label beside a point: anchor, x, baseline and the box that it takes."""
    wide, high = text_width(text, SMALL_PX), SMALL_PX
    for anchor, dx, dy in (
        ("start", 8, 4),
        ("end", -8, 4),
        ("middle", 0, -9),
        ("middle", 0, 18),
        ("start", 7, -7),
        ("start", 7, 15),
        ("end", -7, -7),
        ("end", -7, 15),
    ):
        start = {"start": a + dx, "end": a + dx - wide, "middle": a + dx - wide / 2}[anchor]
        box = (start - 1, b + dy - high, start + wide + 1, b + dy + 4)
        inside = box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3]
        if inside and not any(_overlap(box, other) for other in taken):
            return anchor, a + dx, b + dy, box
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
