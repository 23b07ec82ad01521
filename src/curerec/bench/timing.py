"""How long a job will take, from how long others of its kind took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curerec.bench.plan import Job

#: Before anything was seen, seconds; of the nano model on one processor.
PRIOR = {"base": 40.0, "original": 80.0, "retrain": 75.0, "yardstick": 15.0, "trial": 35.0, "cell": 30.0}


class Estimate:
    """Seconds by kind of job, learnt as they are done.

    Args:
        rows, trials: of cells and of the search, of earlier sittings; their ``wall_s`` are learnt from, but
            for what failed.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]] = (), trials: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.seen: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for kind, lines in (("cell", rows), ("trial", trials)):
            for line in lines:
                if line.get("wall_s") and not line.get("failure"):
                    parts = line.get("forget_parts", 1)
                    self._add(kind, line["dataset"], line["model"], line["method"], parts, line["wall_s"])

    def learn(self, job: Job, seconds: float) -> None:
        """A job was done."""
        self._add(*self._of(job), seconds)

    def seconds(self, job: Job) -> float:
        """Seconds that a job will take: the mean of those most like it that were seen."""
        kind, dataset, model, method, parts = self._of(job)
        other = "trial" if kind == "cell" else "cell"
        like = (
            (kind, dataset, model, method, parts),
            (other, dataset, model, method, parts),
            (kind, model, method, parts),
            (kind, dataset, model),
            (kind, model),
            (kind,),
        )
        found = next((self.seen[key] for key in like if key in self.seen), None)
        return float(np.mean(found[-20:])) if found else PRIOR[kind] * max(1.0, parts / 3)

    def _add(self, kind: str, dataset: str, model: str, method: str, parts: int, seconds: float) -> None:
        keys: list[tuple[Any, ...]] = [(kind, dataset, model, method, parts), (kind, model, method, parts)]
        if parts == 1:
            keys += [(kind, dataset, model), (kind, model), (kind,)]
        for key in keys:
            self.seen[key].append(seconds)

    def _of(self, job: Job) -> tuple[str, str, str, str, int]:
        parts = job.ask.parts if job.ask and job.kind == "cell" else 1
        return job.kind, job.dataset, job.model, job.method, parts


def duration(seconds: float) -> str:
    """A duration for a line of progress.

    Example:
        >>> duration(3.2), duration(75), duration(5000)
        ('3 s', '1 min', '1 h 23 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
