"""The pictures of a benchmark: residuals method by method, and what they cost."""

from __future__ import annotations

from dataclasses import replace

from curerec.reports import figures as f
from curerec.reports.bench_schema import Block, Line
from curerec.reports.dots import Mark, Row, dot_plot
from curerec.reports.scatter import Axis, Dot, scatter

OURS = "cure"
CONTROLS = ("random_modules", "random_groups")
BESIDE = ("original", *CONTROLS)  # drawn next, so that they are not cut
ENDS = ("original", "retrain", "base")
MOST = 2.0  # residuals beyond are drawn as arrows


def in_order(block: Block) -> list[Line]:
    """Original, retrain, base, then methods: by residual where that may be ranked, else as they come.

    Methods with fewer seeds stand below: means over other seeds are not compared.
    """
    ends = [line for line in block.lines if line.name in ENDS]
    methods = [line for line in block.lines if line.name not in ENDS]
    if block.rankable:
        methods.sort(key=lambda line: (line.fewer, _or(line.mean("residual"), float("inf"))))
    return ends + methods


def two(value: float | None) -> str:
    """A number with two decimals."""
    return f.fixed(value, 2)


def seconds(value: float | None) -> str:
    """Seconds, as exact as they matter."""
    return f.significant(value) if value is not None and value < 100 else f.count(value)


def residuals(block: Block, *, width: float = 820.0) -> str:
    """Each method's residual with its 95 % interval, nearest to the retrains first; SVG text.

    What lies beyond two is an arrow at the edge. Empty where residuals may not be ranked.
    """
    if not block.rankable:
        return ""
    kept = [line for line in in_order(block) if line.name not in ("original", "retrain")]
    kept.sort(key=lambda line: (line.fewer, _or(line.mean("residual"), float("inf"))))
    rows = [_row(line) for line in kept]
    lows = (row.value if row.low is None else row.low for row in rows)  # of one seed there is no interval
    least = min((low for low in lows if low is not None), default=0.0)
    return dot_plot(
        [_inside(row, max(least, -0.3)) for row in rows],
        name=f"Residuals, {block.title}",
        about="How far each method ends from a retrain on the deleted data: mean and 95 % interval.",
        domain=(min(0.0, max(least, -0.3)), MOST),
        show=two,
        marks=(Mark(0.0, "as another retrain"), Mark(1.0, "nothing done")),
        width=width,
    )


def _row(line: Line) -> Row:
    found = line.values.get("residual")
    kind = "ours" if line.name == OURS else "core" if line.name in CONTROLS else "other"
    n = len(line.seeds)
    seeds = f"{n} of {f.plural(line.wanted, 'seed')}" if n < line.wanted else f.plural(n, "seed")
    name = f.method(line.name) + (f" ({seeds})" if line.fewer else "")
    if found is None:
        return Row(name, None)
    half, text = found.half, f"{name}: {two(found.mean)}"
    if half is None:
        return Row(name, found.mean, kind=kind, about=text)
    about = f"{text} ± {two(half)}"
    return Row(name, found.mean, found.mean - half, found.mean + half, kind=kind, about=about)


def _inside(row: Row, least: float) -> Row:
    """A row whose interval ends at the edges of the scale; none where its dot is an arrow."""
    if row.value is None or row.low is None or row.high is None:
        return row
    if not least <= row.value <= MOST:
        return replace(row, low=None, high=None)
    return replace(row, low=max(row.low, least), high=min(row.high, MOST))


def pictures(block: Block) -> dict[str, str]:
    """The trade-offs of a block, wide and narrow."""
    residual = Axis("residual", two, least=0.5, always=(0.0, 1.0), most=(-0.6, 2.0), mark=0.0)
    drop = Axis("test AUC under the retrains'", f.signed, least=0.01, always=(0.0,), mark=0.0)
    time = Axis("t_total, seconds", seconds, least=1.0, log=True)
    gap = Axis("membership gap to the retrains", f.signed, least=0.05, always=(0.0,), mark=0.0)
    out = {}
    for size, width in (("", 460.0), ("_narrow", 330.0)):
        for name, column, x, title in (
            ("drop", "auc_drop", drop, "Residual against what it cost in test AUC"),
            ("time", "t_total", time, "Residual against time"),
            ("gap", "membership_gap", gap, "Residual against the membership gap"),
        ):
            kept = [line for line in in_order(block) if line.name not in ("retrain", "base")]
            kept.sort(key=lambda line: (line.name != OURS, line.name not in BESIDE))
            dots = [_dot(line, column) for line in kept if column != "t_total" or line.name != "original"]
            out[name + size] = scatter(
                dots, x, residual, name=title, about=f"{title}, one point a method.", width=width
            )
    return out


def _dot(line: Line, column: str) -> Dot:
    x, y = line.values.get(column), line.values.get("residual")
    kind = "ours" if line.name == OURS else "reference" if line.name == "original" else "other"
    ends = [(one.mean, one.half) if one else (None, None) for one in (x, y)]
    return Dot(f.method(line.name), ends[0][0], ends[1][0], ends[0][1], ends[1][1], kind)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
