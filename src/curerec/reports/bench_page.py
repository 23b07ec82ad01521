"""From the summary of a benchmark to one self-contained page: tables, trade-offs, failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from curerec.reports import figures as f
from curerec.reports.bench_pictures import ENDS, OURS, in_order, pictures, residuals, seconds, two
from curerec.reports.bench_schema import Against, Bench, Block, Interval, Line, as_bench
from curerec.reports.files import replace_file
from curerec.reports.templating import template

Show = Callable[[float | None], str]


def _nats(value: float | None) -> str:
    return f.fixed(value, 4)


def _megabytes(value: float | None) -> str:
    return f.count(None if value is None else value / 1e6)


#: Columns of the table: key, head, how a number is written.
COLUMNS: tuple[tuple[str, str, Show], ...] = (
    ("residual", "Residual", two),
    ("residual_of_seeds", "mean of the seeds' residuals", two),
    ("jsd", "JSD on D_f, nats", _nats),
    ("jsd_test", "on D_t", _nats),
    ("excess_residual", "Excess residual", two),
    ("jeffreys_half", "Half Jeffreys, nats", _nats),
    ("membership_auc", "Membership AUC", f.fixed),
    ("membership_gap", "its gap", f.signed),
    ("test_auc", "Test AUC", f.fixed),
    ("acc", "Accuracy", f.fixed),
    ("log_loss", "Log-loss, nats", f.fixed),
    ("test_ece", "ECE", f.fixed),
    ("relearn_ratio", "Relearn ratio", two),
    ("int8_residual", "int8 residual", two),
    ("nf4_residual", "nf4 residual", two),
    ("t_core", "t_core, s", seconds),
    ("t_total", "t_total, s", seconds),
    ("retrain_ratio", "of a retrain", two),
    ("latency_ratio", "An answer's time, of the original's", two),
    ("peak_memory", "Peak memory, MB", _megabytes),
    ("trainable_parameters", "Trainable", f.count),
)
MARK = "*"


def write_bench(summary: Bench | Mapping[str, Any], path: str | Path) -> Path:
    """Render a summary and write it whole or not at all.

    Args:
        summary: of :func:`curerec.bench.summary.summarise`.
        path: target, usually ``bench.html``.

    Returns:
        The path written.

    Raises:
        DataError: the mapping is no summary.
        StorageError: the file cannot be written.
    """
    return replace_file(path, render_bench(summary))


def render_bench(summary: Bench | Mapping[str, Any]) -> str:
    """The page: style and pictures inline, no script, no address, every string escaped.

    Example:
        >>> nothing = {"schema": "curerec-bench/1", "name": "x", "seeds": [], "retrains": 2, "blocks": []}
        >>> page = render_bench(nothing)
        >>> "Nothing has been measured yet" in page, "<script" in page
        (True, False)
    """
    bench = as_bench(summary)
    return (
        template("bench.html.j2").render(
            bench=bench,
            f=f,
            blocks=[_view(block, bench) for block in bench.blocks if any(x.models for x in block.lines)],
            waiting=[b.title for b in bench.blocks if not any(x.models for x in b.lines)],
        )
        + "\n"
    )


def cells(line: Line, block: Block, columns: tuple[tuple[str, str, Show], ...]) -> list[str]:
    """The numbers of a line as text: mean and half-width of the interval."""
    out = []
    for key, _, show in columns:
        hidden = key.endswith(("residual", "residual_of_seeds")) and not block.rankable
        shown = f.NONE if hidden else with_half(line.values.get(key), show, of=len(line.seeds))
        against = {"residual": line.against, "excess_residual": line.against_excess}.get(key)
        if against is not None and against.significant:
            shown += MARK
        out.append(shown)
    return out


def with_half(value: Interval | None, show: Show, *, of: int = 0) -> str:
    """A mean and its half-width; and how many seeds it is of where those are fewer than ``of``.

    Example:
        >>> with_half(Interval(mean=0.4204, half=0.066, n=3), two)
        '0.42 ± 0.07'
        >>> with_half(Interval(mean=0.4204, half=0.066, n=3), two, of=5)
        '0.42 ± 0.07 (3 of 5)'
    """
    if value is None:
        return f.NONE
    half = "" if value.half is None else f" ± {show(value.half).lstrip('+')}"
    return show(value.mean) + half + (f" ({value.n} of {of})" if value.n < of else "")


def filled(block: Block) -> tuple[tuple[str, str, Show], ...]:
    """Columns in which any line of a block has a number."""
    return tuple(c for c in COLUMNS if any(line.values.get(c[0]) for line in block.lines))


def failures(line: Line) -> str:
    """What went wrong: seeds and reasons; alike reasons once."""
    by_text: dict[str, list[int]] = {}
    for one in line.failures:
        by_text.setdefault(one.text, []).append(one.seed)
    return "; ".join(f"seed {', '.join(map(str, seeds))}: {text}" for text, seeds in by_text.items())


def seeds(line: Line) -> str:
    """How many seeds ran, of how many the fullest line is to have.

    Example:
        >>> seeds(Line(name="npo", values={}, seeds=[20], wanted=5, fewer=True, models=1))
        '1 (of 5)'
    """
    return f"{len(line.seeds)} (of {line.wanted})" if len(line.seeds) < line.wanted else f"{len(line.seeds)}"


def verified(line: Line) -> str:
    """How many models the verdict verifies, and how many it refuses.

    Example:
        >>> said = {"verified": 8, "refused": 1, "of": 10, "by": {"utility": 1}}
        >>> verified(Line(name="npo", values={}, seeds=[], wanted=5, fewer=True, models=10, verdicts=said))
        '8 of 10, 1 refused'
    """
    said = line.verdicts
    if said is None:
        return f.NONE
    return f"{said.verified} of {said.of}" + (f", {said.refused} refused" if said.refused else "")


def refusals(block: Block, named: Callable[[str], str] = str) -> str:
    """Which checks refused how many models, by line; empty where none did.

    Args:
        block: of the summary.
        named: how a method and a check are called.
    """
    parts = [
        f"{named(line.name)}: {', '.join(f'{named(name)} {n}' for name, n in line.verdicts.by.items())}"
        for line in in_order(block)
        if line.verdicts and line.verdicts.by
    ]
    return f"How many models each check of the verdict refused. {'; '.join(parts)}." if parts else ""


def judged(block: Block) -> bool:
    """Whether any line of a block has verdicts."""
    return any(line.verdicts for line in block.lines)


def scale(block: Block, *, costs_only: bool = False) -> str:
    """What the floor and the ceiling say, and whether methods are ranked."""
    if block.floor is None or block.ceiling is None:
        return "" if costs_only else "Nothing to compare with yet: no retrains were measured."
    ends = (
        f"Floor {with_half(block.floor, _nats)} (between retrains), ceiling {with_half(block.ceiling, _nats)}"
    )
    ends += " nats (nothing done)."
    if block.rankable:
        fewer = any(line.fewer and line.name not in ENDS for line in block.lines)
        return ends + (" Methods with fewer seeds stand below the others, not ranked." if fewer else "")
    return (
        f"{ends} The ceiling is under twice the floor: nothing measurable was there to forget, so methods "
        "are not ranked and residuals not shown."
    )


def _in_words(name: str) -> str:
    """A line or a check as the page calls it."""
    return "Retrained" if name == "retrain" else f.method(name)


def _view(block: Block, bench: Bench) -> dict[str, Any]:
    columns = filled(block)
    lines = in_order(block)
    gone = {
        head: next((x.missing[key] for x in reversed(lines) if x.missing.get(key)), "no seed has one")
        for key, head, _ in COLUMNS
        if key not in {c[0] for c in columns} and not bench.costs_only
    }
    return {
        "title": block.title,
        "scale": scale(block, costs_only=bench.costs_only),
        "heads": [*(head for _, head, _ in columns), *(["Verified"] if judged(block) else [])],
        "refusals": refusals(block, _in_words),
        "rows": [
            {
                "name": _in_words(line.name),
                "ours": line.name == OURS,
                "cells": [*cells(line, block, columns), *([verified(line)] if judged(block) else [])],
                "seeds": seeds(line),
                "failures": failures(line),
            }
            for line in lines
        ],
        "gone": gone,
        "partly": [
            (_in_words(line.name), head, line.missing[key])
            for line in lines
            for key, head, _ in columns
            if line.values.get(key) is not None and line.missing.get(key)
        ],
        "against": [
            (what, rows)
            for what, rows in (
                ("Residual", _against(lines, "against")),
                ("Excess residual", _against(lines, "against_excess")),
            )
            if rows
        ],
        "residuals": Markup(residuals(block)),
        "residuals_narrow": Markup(residuals(block, width=330.0)),
        "pictures": {n: Markup(p) for n, p in pictures(block).items()} if block.rankable else {},
    }


def _against(lines: list[Line], key: str) -> list[tuple[str, str, str, str]]:
    """Rows of the table that holds our method against the others; of one without a comparison, why."""
    out = []
    for line in lines:
        one: Against | None = getattr(line, key)
        if one is not None:
            span = f"{two(one.low)} to {two(one.high)}" + (", of seeds alone" if one.by == "rows" else "")
            out.append((f.method(line.name), f.signed(one.difference, 2), span, f.fixed(one.p_holm)))
        elif line.missing.get(key):
            out.append((f.method(line.name), f.NONE, line.missing[key], f.NONE))
    return out
