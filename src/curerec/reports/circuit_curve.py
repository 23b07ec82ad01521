"""Faithfulness against the size of the circuit, with a place for the mark that the slider moves."""

from __future__ import annotations

from collections.abc import Sequence

from curerec.reports.svg import SMALL_PX, Scale, el, finite, label, picture


def curve(points: Sequence[tuple[float, float | None]], chosen: int | None, *, asked: float | None) -> str:
    """The curve; its script moves ``.now`` to the size chosen.

    Args:
        points: (size, faithfulness), from the empty to the full circuit.
        chosen: size of the circuit.
        asked: faithfulness that was asked for.

    Returns:
        SVG text, empty without two points that can be drawn. The viewBox is 360 wide; points carry their
        coordinates as ``data-x`` and ``data-y``.
    """
    drawn = [(float(s), f) for s, f in points if finite(f)]
    if len(drawn) < 2:
        return ""
    values = [float(f) for _, f in drawn if f is not None]
    low, high = min(0.0, *values), max(1.0, *values)
    x = Scale(0.0, max(s for s, _ in drawn), 44.0, 346.0)
    y = Scale(low - 0.03 * (high - low), high + 0.05 * (high - low), 196.0, 12.0)
    parts = []
    for tick in y.ticks(4):
        parts.append(el("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(
            label(36.0, y(tick) + 4, f"{100 * tick:.0f} %", anchor="end", size=SMALL_PX, class_="quiet")
        )
    for tick in x.ticks(5):
        if tick == int(tick):
            parts.append(label(x(tick), 214.0, f"{tick:.0f}", anchor="middle", size=SMALL_PX, class_="quiet"))
    parts.append(
        label((x.start + x.end) / 2, 234.0, "parts kept", anchor="middle", size=SMALL_PX, class_="quiet")
    )
    if asked is not None:
        parts.append(el("line", x1=x.start, x2=x.end, y1=y(asked), y2=y(asked), class_="mark"))
    path = "M" + "L".join(f"{x(s):.1f} {y(f or 0.0):.1f}" for s, f in drawn)
    parts.append(el("path", d=path, class_="curve"))
    if chosen is not None:
        at = x(float(chosen))
        parts.append(el("line", x1=at, x2=at, y1=y.start, y2=y.end, class_="stop"))
    for s, f in drawn:
        parts.append(
            el(
                "circle",
                cx=x(s),
                cy=y(f or 0.0),
                r=3.0 if len(drawn) <= 20 else 2.0 if len(drawn) <= 60 else 0.9,
                class_="point",
                data_size=f"{s:.0f}",
            )
        )
    parts.append(el("circle", cx=x(drawn[0][0]), cy=y(values[0]), r=6.5, class_="now"))
    about = "Share of the answer's margin that is kept when all other parts are fed altered input."
    return picture(360.0, 244.0, "Faithfulness by size", about, *parts, class_="chart faith")
