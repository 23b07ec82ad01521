"""The summary as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curerec.reports import bench_page as page
from curerec.reports.bench_schema import Bench, as_bench


def text_table(summary: Mapping[str, Any]) -> str:
    """Every block as a Markdown table, with its floor and ceiling and its failures.

    Args:
        summary: of :func:`curerec.bench.summary.summarise`.
    """
    bench = as_bench(summary)
    out = [f"# {bench.name}", ""]
    for block in bench.blocks:
        if not any(line.models for line in block.lines):
            out += [f"## {block.title}", "", "Not run yet.", ""]
            continue
        columns = page.filled(block)
        told = page.judged(block)
        heads = [
            "method",
            *(head for _, head, _ in columns),
            *(["Verified"] if told else []),
            "seeds",
            "failures",
        ]
        scale = page.scale(block, costs_only=bench.costs_only)
        out += [f"## {block.title}", "", *([scale, ""] if scale else [])]
        out += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for line in page.in_order(block):
            row = [line.name, *page.cells(line, block, columns), *([page.verified(line)] if told else [])]
            row += [page.seeds(line), page.failures(line)]
            out.append("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |")
        out.append("")
        if refused := page.refusals(block):
            out += [refused, ""]
    if bench.shared_machine:
        out.append("Seconds are those of a shared machine: cells ran beside each other.")
    marks = [a for b in bench.blocks for x in b.lines for a in (x.against, x.against_excess) if a]
    if any(a.significant for a in marks):
        out.append("*: differs from cure (paired, over seeds and examples; p < .05 after Holm).")
    if any(a.by == "rows" for a in marks):
        out.append("Some marks are over seeds alone: the answers to single examples were not kept.")
    for why, names in _uncompared(bench).items():
        out.append(f"Not compared with cure: {', '.join(names)} ({why}).")
    if bench.data:
        prints = ", ".join(f"{name} {value[:12]}" for name, value in bench.data.items())
        out.append(f"Data, by the first digits of their fingerprints: {prints}.")
    if len(bench.sources) > 1:
        out.append(f"Rows are of {len(bench.sources)} states of the code ({', '.join(bench.sources)}).")
    if bench.left_out:
        out.append(f"{bench.left_out} rows of other configurations or models were left out.")
    return "\n".join(out).rstrip() + "\n"


def _uncompared(bench: Bench) -> dict[str, list[str]]:
    """Methods whose residual has no comparison, by reason; with the block where there are several."""
    found: dict[str, list[str]] = {}
    for block in bench.blocks:
        for line in block.lines:
            if why := line.missing.get("against"):
                where = f"{line.name} in {block.title}" if len(bench.blocks) > 1 else line.name
                found.setdefault(why, []).append(where)
    return found
