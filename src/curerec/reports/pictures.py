"""The report's pictures: pure functions from numbers to SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curerec.reports.dots import Mark, Row, dot_plot
from curerec.reports.figures import fixed, interval, method, signed
from curerec.reports.grid import ROLE_NAMES
from curerec.reports.lines import Panel, conflict_plot, curve_plot, panels
from curerec.reports.module_map import legend, module_map
from curerec.reports.parts import Metrics, Score, StepSeen, TraceStep
from curerec.reports.schema import is_retrain
from curerec.reports.svg import finite, padded

__all__ = [
    "ROLE_NAMES",
    "circuit_curve",
    "conflict",
    "in_order",
    "legend",
    "membership",
    "module_map",
    "module_scores",
    "residual_scale",
    "test_auc",
    "update_trace",
]


def residual_scale(residual: Mapping[str, float | None], *, ours: str = "cure", width: float = 960.0) -> str:
    """How forgetting stands: 0 = as good as a retrain, 1 = nothing done.

    The scale is (jsd - floor) / (ceiling - floor); 0 is the distance between two retrains that differ only in
    their seed, so a value a little under 0 is as good as one a little over it.

    Args:
        residual: by method; what is not finite is left out.
        ours: the method that the report is about.
        width: px.

    Returns:
        SVG text; empty without a finite value.
    """
    # Original and retrains are the ends of the scale, not marks on it.
    known = {n: v for n, v in residual.items() if (n == ours or not _is_reference(n)) and finite(v)}
    values = finite(*known.values())
    if not values:
        return ""
    ordered = sorted(known.items(), key=lambda item: item[1] or 0.0)
    rows = [
        Row(method(n), v, kind=_kind(n, ours), about=f"{method(n)}: residual {fixed(v, 2)}")
        for n, v in ordered
    ]
    # A method that went astray must not squeeze all others into one corner: it gets an arrow.
    low, high = max(-0.6, min(-0.12, *values)) - 0.05, min(2.0, max(1.1, *values)) + 0.05
    marks = [Mark(0.0, "0 = as good as a retrain"), Mark(1.0, "1 = nothing done")]
    about = "Residual of every method on a line from 0, as good as a retrain, to 1, nothing done."
    return dot_plot(
        rows,
        name="How forgetting stands",
        about=about,
        domain=(low, high),
        show=lambda v: fixed(v, 2),
        marks=marks,
        origin=0.0,
        width=width,
    )


def membership(metrics: Mapping[str, Metrics | None], *, ours: str = "cure", width: float = 460.0) -> str:
    """How well an attacker tells the deleted data from data never seen, with 95 % intervals and the 0.5 line.

    Args:
        metrics: by model.
        ours: the method that the report is about.
        width: px.

    Returns:
        SVG text; empty where no model has a membership AUC.
    """
    rows = [
        Row(
            method(n),
            m.membership_auc,
            m.membership_low,
            m.membership_high,
            _kind(n, ours),
            about=f"{method(n)}: {fixed(m.membership_auc)}{_between(m.membership_low, m.membership_high)}",
        )
        for n, m in in_order(metrics, ours)
    ]
    values = [v for r in rows if finite(r.value) for v in finite(r.value, r.low, r.high)]
    if not values:
        return ""
    return dot_plot(
        rows,
        name="Can the deleted data be told from data never seen?",
        about="Membership AUC of every model with its 95 % interval; 0.5 is pure guessing.",
        domain=padded([*values, 0.5], least=0.1),
        show=fixed,
        marks=[Mark(0.5, "0.5 = pure guessing")],
        width=width,
    )


def test_auc(metrics: Mapping[str, Metrics | None], *, ours: str = "cure", width: float = 460.0) -> str:
    """Test AUC of every model, with a line at the retrained one (the original, where there is no retrain).

    Args:
        metrics: by model.
        ours: the method that the report is about.
        width: px.

    Returns:
        SVG text; empty where no model has a test AUC.
    """
    rows = [
        Row(method(n), m.test_auc, kind=_kind(n, ours), about=f"{method(n)}: test AUC {fixed(m.test_auc)}")
        for n, m in in_order(metrics, ours)
    ]
    values = finite(*(r.value for r in rows))
    if not values:
        return ""
    marks = []
    for n, text in (("retrain", "retrained"), ("retrain_2", "retrained"), ("original", "original")):
        model = metrics.get(n) if n != ours else None
        found = finite(model.test_auc) if model else []
        if found:
            marks = [Mark(found[0], text)]
            break
    return dot_plot(
        rows,
        name="Quality of the recommendations",
        about="Test AUC of every model; higher is better.",
        domain=padded(values, least=0.04),
        show=fixed,
        marks=marks,
        width=width,
    )


test_auc.__test__ = False  # type: ignore[attr-defined]  # pytest would take the name for a test


def module_scores(scores: Sequence[Score], *, top: int = 12, width: float = 460.0) -> str:
    """Circuit scores of the modules that matter most, with intervals; filled dots are in the core circuit.

    Args:
        scores: of all modules.
        top: how many to draw, by |score|.
        width: px.

    Returns:
        SVG text; empty without a finite score.
    """
    kept = sorted((s for s in scores if finite(s.score)), key=lambda s: -abs(s.score or 0.0))[:top]
    rows = [
        Row(
            _module(s.module),
            s.score,
            s.low,
            s.high,
            "core" if s.in_core else "reference",
            f"{_module(s.module)}: {signed(s.score)}{_between(s.low, s.high)}",
        )
        for s in kept
    ]
    if not rows:
        return ""
    values = [v for r in rows for v in finite(r.value, r.low, r.high)]
    return dot_plot(
        rows,
        name="How much each part carries",
        about="Change of the answer when one part is altered, with 95 % interval.",
        domain=padded([*values, 0.0], least=1e-3),
        show=signed,
        marks=[Mark(0.0, "0 = carries nothing")],
        origin=0.0,
        width=width,
    )


def update_trace(
    trace: Sequence[TraceStep], target: float | None = None, *, stopped: bool = True, width: float = 460.0
) -> str:
    """Membership AUC and validation AUC by step, with the step at which the update stopped.

    Args:
        trace: check points in order.
        target: membership AUC that was aimed for; None: 0.5 is drawn.
        stopped: draw the stop mark at the last one.
        width: px.

    Returns:
        SVG text; empty where no check point holds either figure.
    """
    aim = 0.5 if target is None else target
    title = "Membership AUC (0.5 = pure guessing)" if target is None else "Membership AUC (line: aimed for)"
    drawn = [
        Panel(title, [(t.step, t.membership_auc) for t in trace], aim),
        Panel("Validation AUC (higher is better)", [(t.step, t.valid_auc) for t in trace]),
    ]
    stop = trace[-1].step if trace and stopped else None
    return panels(
        drawn,
        name="The update, step by step",
        about="Membership AUC and validation AUC by step of the update.",
        stop=stop,
        width=width,
    )


def circuit_curve(
    curve: Sequence[tuple[float | None, float | None]],
    size: int | None = None,
    faithfulness: float | None = None,
    *,
    width: float = 460.0,
) -> str:
    """Faithfulness against the number of parts kept, with the 0.9 line and the core circuit marked.

    Args:
        curve: (size, faithfulness) pairs.
        size, faithfulness: of the core circuit.
        width: px.

    Returns:
        SVG text; empty without a finite pair.
    """
    return curve_plot(curve, size, faithfulness, width=width)


def conflict(trace: Sequence[TraceStep | StepSeen], *, width: float = 460.0) -> str:
    """Cosine between the forget and the retain gradient by step: below 0 they pull against each other.

    Args:
        trace: steps, or check points alone, with ``cos_mean`` and ``projected``.
        width: px.

    Returns:
        SVG text; empty where no check point holds a cosine.
    """
    return conflict_plot([(t.step, t.cos_mean, t.projected) for t in trace], width=width)


def in_order(metrics: Mapping[str, Metrics | None], ours: str) -> list[tuple[str, Metrics]]:
    """Models that were measured: what was there before, the yardsticks, other methods, this run."""

    def place(name: str) -> tuple[int, int]:
        if name == ours:
            return 3, 0
        if not _is_reference(name):
            return 2, 0
        return (0, 0) if name == "original" else (1, int(name.partition("_")[2] or 1))

    return [(n, m) for n, m in sorted(metrics.items(), key=lambda item: place(item[0])) if m is not None]


def _between(low: float | None, high: float | None) -> str:
    return f", 95 % interval {interval(low, high)}" if len(finite(low, high)) == 2 else ""


def _is_reference(name: str) -> bool:
    return name == "original" or is_retrain(name)


def _kind(name: str, ours: str) -> str:
    return "ours" if name == ours else "reference" if _is_reference(name) else "other"


def _module(name: str) -> str:
    parts = name.split(".")
    if len(parts) >= 3 and parts[0] in {"layers", "layer"}:
        return f"layer {parts[1]}, {' '.join(parts[2:])}"
    return name
