"""Pictures with a step or a size across and a figure upwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curerec.reports.dots import decimals, tick_text
from curerec.reports.figures import fixed, percent, signed
from curerec.reports.svg import SMALL_PX, Scale, el, finite, label, padded, picture, text_width, words

_LEFT, _RIGHT = 46.0, 12.0
MANY = 20  # steps: smaller dots for more

Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One curve in a stack of panels that share the steps.

    Attributes:
        name: above the panel.
        points: (step, value); a value that is not finite leaves a gap.
        line: a value to mark across the panel.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    line: float | None = None


def panels(
    drawn: Sequence[Panel], *, name: str, about: str, stop: float | None = None, width: float = 460.0
) -> str:
    """Curves under each other over the same steps.

    Args:
        drawn: panels; one without a finite value is left out.
        name, about: of the picture.
        stop: step at which a vertical line is drawn through all of them.
        width: px.

    Returns:
        SVG text; empty where nothing can be drawn.
    """
    kept = [p for p in drawn if finite(*(v for _, v in p.points))]
    if not kept:
        return ""
    x = _across([s for p in kept for s, _ in p.points] + finite(stop), width)
    top, high = 26.0 if stop is not None else 8.0, 92.0
    parts = []
    y = top
    for panel in kept:
        parts.append(label(0.0, y + 12, panel.name, size=SMALL_PX, class_="quiet"))
        values = finite(*(v for _, v in panel.points), panel.line)
        scale = Scale(*padded(values, least=0.02, pad=0.12), y + 22 + high, y + 22)
        parts.append(_grid(scale, x, 3))
        if panel.line is not None:
            at = scale(panel.line)
            parts.append(el("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="mark"))
        parts.append(_curve(panel.points, x, scale, lambda s, v: f"step {s:g}: {fixed(v)}"))
        y += high + 40
    bottom = y - 18
    if stop is not None:
        at, text = x(stop), f"stopped at step {stop:g}"
        half = text_width(text, SMALL_PX) / 2
        centre = min(max(at, half + 2), width - half - 2)
        parts.append(el("line", x1=at, x2=at, y1=17, y2=bottom, class_="stop"))
        parts.append(label(centre, 12.0, text, anchor="middle", size=SMALL_PX, class_="markname"))
    parts.append(_foot(x, bottom, "step"))
    return picture(width, bottom + 36, name, about, *parts)


def curve_plot(
    curve: Sequence[tuple[float | None, float | None]],
    size: float | None,
    faithfulness: float | None,
    *,
    width: float = 460.0,
) -> str:
    """Faithfulness of a circuit against its size; see :func:`curerec.reports.pictures.circuit_curve`."""
    points = sorted((s, f) for s, f in curve if len(finite(s, f)) == 2 and s is not None and f is not None)
    if not points:
        return ""
    chosen = finite(size, faithfulness)
    x = _across([p[0] for p in points] + (chosen[:1] if len(chosen) == 2 else []), width)
    values = [0.0, 1.0, *(p[1] for p in points), *(chosen[1:] if len(chosen) == 2 else [])]
    y = Scale(*padded(values, least=1.0, pad=0.05), 190.0, 10.0)
    at = y(0.9)
    parts = [_grid(y, x, 4, extra=0.9), el("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="mark")]
    parts.append(_curve(points, x, y, lambda s, f: f"{s:g} parts: faithfulness {fixed(f, 2)}"))
    if len(chosen) == 2:
        text = f"core circuit: {chosen[0]:g} parts, {fixed(chosen[1], 2)}"
        wide = text_width(text)
        cx, cy = x(chosen[0]), y(chosen[1])
        # The curve comes from the lower left, so the room is at the lower right of the dot.
        start = min(cx + 9, x.end - wide)
        parts.append(el("circle", cx=cx, cy=cy, r=6.0, class_="dot ours"))
        parts.append(el("line", x1=cx, x2=cx, y1=cy + 8, y2=min(cy + 36, 184.0), class_="stop"))
        parts.append(label(start, min(cy + 40, 184.0), text, class_="strong halo"))
    parts.append(_foot(x, 190.0, "parts kept, most important first"))
    about = "Share of the answer that is kept when only the most important parts are left intact."
    return picture(width, 226, "How few parts carry the recommendation", about, *parts)


def conflict_plot(points: Sequence[tuple[float, float | None, float | None]], *, width: float = 460.0) -> str:
    """Cosine by step as lines from zero; see :func:`curerec.reports.pictures.conflict`."""
    kept = [(s, c, p) for s, c, p in points if c is not None and finite(c)]
    if not kept:
        return ""
    notes = ("pull together", "pull apart")
    right = max(text_width(n, SMALL_PX) for n in notes) + 10
    x = _across([s for s, _, _ in kept], width - right)
    most = min(1.0, max(0.1, 1.2 * max(abs(c) for _, c, _ in kept)))
    y = Scale(-most, most, 176.0, 8.0)
    zero = y(0.0)
    parts = [
        el("rect", x=x.start, y=zero, width=x.end - x.start + 6, height=176.0 - zero, class_="zone"),
        _grid(y, x, 4),
        el("line", x1=x.start, x2=x.end + 6, y1=zero, y2=zero, class_="axis"),
        label(x.end + 12, (8.0 + zero) / 2 + 4, notes[0], size=SMALL_PX, class_="quiet"),
        label(x.end + 12, (176.0 + zero) / 2 + 4, notes[1], size=SMALL_PX, class_="quiet"),
    ]
    radius = 4.0 if len(kept) <= MANY else 2.0
    for step, cosine, projected in kept:
        kind = "other" if cosine >= 0 else "clash"
        about = f"step {step:g}: cosine {signed(cosine, 2)}"
        about += f", {percent(projected)} of the parts projected" if finite(projected) else ""
        parts.append(
            el(
                "g",
                el("title", words(about)),
                el("line", x1=x(step), x2=x(step), y1=zero, y2=y(cosine), class_=f"stem {kind}"),
                el("circle", cx=x(step), cy=y(cosine), r=radius, class_=f"dot {kind}"),
            )
        )
    parts.append(_foot(x, 176.0, "step"))
    about = "Cosine between the direction that forgets and the direction that retains, by step."
    return picture(width, 212, "Do forgetting and keeping pull against each other?", about, *parts)


def _across(values: Sequence[float], width: float) -> Scale:
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 1, high + 1
    return Scale(low, high, _LEFT + 6, width - _RIGHT)


def _grid(y: Scale, x: Scale, count: int, extra: float | None = None) -> str:
    """Horizontal lines with their values; ``extra`` is always written, its neighbours give way."""
    ticks = y.ticks(count)
    digits = max(decimals(ticks), 1 if extra is not None else 0)
    placed = [] if extra is None else [y(extra)]
    parts = [] if extra is None else [_tick(extra, y(extra), digits)]
    for tick in ticks:
        at = y(tick)
        if all(abs(at - other) >= SMALL_PX + 3 for other in placed):
            parts.append(el("line", x1=x.start - 6, x2=x.end, y1=at, y2=at, class_="grid"))
            parts.append(_tick(tick, at, digits))
            placed.append(at)
    return "".join(parts)


def _tick(value: float, at: float, digits: int) -> str:
    return label(_LEFT - 8, at + 4, tick_text(value, digits), anchor="end", size=SMALL_PX, class_="quiet")


def _foot(x: Scale, bottom: float, name: str) -> str:
    """The horizontal axis with whole-number ticks and its name."""
    parts = [el("line", x1=x.start - 6, x2=x.end, y1=bottom, y2=bottom, class_="axis")]
    end = float("-inf")
    for tick in (t for t in x.ticks(6) if t == int(t)):
        text = f"{tick:.0f}"
        half = text_width(text, SMALL_PX) / 2
        if x(tick) - half > end + 6:
            parts.append(label(x(tick), bottom + 16, text, anchor="middle", size=SMALL_PX, class_="quiet"))
            end = x(tick) + half
    middle = (x.start + x.end) / 2
    parts.append(label(middle, bottom + 32, name, anchor="middle", size=SMALL_PX, class_="quiet"))
    return "".join(parts)


def _curve(
    points: Sequence[tuple[float, float | None]], x: Scale, y: Scale, about: Callable[[float, float], str]
) -> str:
    """A line with a gap where a value is missing, and a dot at every value."""
    runs: list[list[Point]] = [[]]
    for step, value in points:
        if value is not None and finite(value):
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in runs:
        if len(run) > 1:
            path = "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in run)
            parts.append(el("path", d=f"M{path}", class_="curve"))
        parts += [
            el("circle", el("title", words(about(s, v))), cx=x(s), cy=y(v), r=3.5, class_="point")
            for s, v in run
        ]
    return "".join(parts)
