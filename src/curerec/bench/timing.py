"""How long a job will take, from how long others of its kind took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curerec.bench.plan import Job
from curerec.methods import METHODS

#: Before anything was seen, seconds; of the nano model on one processor, a yardstick with its attacks.
PRIOR = {"base": 50.0, "original": 90.0, "retrain": 80.0, "yardstick": 70.0, "trial": 35.0, "cell": 35.0}
#: Of a request in parts, whose single ones are small: seconds of a part over those of the whole at once.
OF_A_PART = 0.5
#: Of a method that trains its shards in every cell: seconds over those of training the original.
OF_ALL_SHARDS = 2.0


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
        """A job was done; what found its work done already is not to be learnt from."""
        self._add(*self._of(job), seconds)

    def seconds(self, job: Job) -> float:
        """Seconds that a job will take: the mean of those most like it that were seen."""
        return self._seconds(*self._of(job))

    def _seconds(self, kind: str, dataset: str, model: str, method: str, parts: int) -> float:
        other = "trial" if kind == "cell" else "cell"
        its_own = ((kind, dataset, model, method, parts), (other, dataset, model, method, parts))
        found = self._mean(*its_own, (kind, model, method, parts))
        if found is None and parts > 1:
            return OF_A_PART * parts * self._seconds(kind, dataset, model, method, 1)
        if found is None and method and _trains_shards(method):
            return OF_ALL_SHARDS * self._seconds("original", dataset, model, "", 1)
        found = self._mean((kind, dataset, model), (kind, model), (kind,)) if found is None else found
        return PRIOR[kind] if found is None else found

    def _mean(self, *keys: tuple[Any, ...]) -> float | None:
        found = next((self.seen[key] for key in keys if key in self.seen), None)
        return float(np.mean(found[-20:])) if found else None

    def _add(self, kind: str, dataset: str, model: str, method: str, parts: int, seconds: float) -> None:
        keys: list[tuple[Any, ...]] = [(kind, dataset, model, method, parts), (kind, model, method, parts)]
        if parts == 1:
            keys += [(kind, dataset, model), (kind, model), (kind,)]
        for key in keys:
            self.seen[key].append(seconds)

    def _of(self, job: Job) -> tuple[str, str, str, str, int]:
        parts = job.ask.parts if job.ask and job.kind == "cell" else 1
        return job.kind, job.dataset, job.model, job.method, parts


def _trains_shards(method: str) -> bool:
    config = METHODS[method][1] if method in METHODS else None
    return config is not None and "shards" in config.model_fields


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
