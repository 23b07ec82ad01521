"""Which scorer is the default: the cheapest that finds what exact patching finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ENOUGH = 0.9  # recall of the largest exact scores from which a scorer may be the default


def cheapest_trusted(rows: Iterable[Mapping[str, Any]], *, enough: float = ENOUGH) -> str:
    """The scorer of fewest passes whose mean recall of the top is at least ``enough``; else ``exact``.

    Args:
        rows: of ``benchmarks/quality/scorers``: ``scorer``, ``passes`` (an example) and ``top_recall``; rows
            of the same scorer on several models or seeds are averaged. ``adapter`` asks another question
            than a patch does and is left out.
        enough: recall that is enough.

    Example:
        >>> rows = [
        ...     {"scorer": "exact", "passes": 13, "top_recall": 1.0},
        ...     {"scorer": "atp", "passes": 4, "top_recall": 0.8},
        ...     {"scorer": "atp_ig", "passes": 12, "top_recall": 0.95},
        ... ]
        >>> cheapest_trusted(rows), cheapest_trusted(rows, enough=0.99)
        ('atp_ig', 'exact')
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["scorer"] != "adapter":
            found.setdefault(row["scorer"], []).append((row["passes"], row["top_recall"]))
    mean = {name: [sum(v) / len(v) for v in zip(*pairs, strict=True)] for name, pairs in found.items()}
    good = [(passes, name) for name, (passes, recall) in mean.items() if recall >= enough - 1e-9]
    return min(good)[1] if good else "exact"
