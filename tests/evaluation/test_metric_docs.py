"""The table of docs/metrics.md names every metric, with its cost."""

from __future__ import annotations

import re
from pathlib import Path

from curerec.evaluation import METRICS

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_every_metric_is_in_the_table():
    rows = [
        line.split("|") for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    costs = {name: row[4].strip() for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    for name, metric in METRICS.items():
        base = re.sub(r"_(others|q\d)$", "", name)
        base = base if base in costs else re.sub(r"_(test|nf4)$", lambda m: "_int8" * (m[1] == "nf4"), base)
        assert base in costs, name
        assert costs[base].startswith(metric.cost), name
    known = {re.sub(r"_(others|q\d|test|nf4)$", "", name) for name in METRICS} | set(METRICS)
    assert not {name for name in costs if name not in known}
