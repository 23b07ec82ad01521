"""Seconds of a request's stages, from what each kind of work costs on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from curerec.workload import BATCH, Kind, Part, Work


@dataclass(frozen=True)
class Line:
    """Seconds as a straight line: ``fixed`` a batch and ``rate`` a padded token (or prompt, or resample)."""

    fixed: float
    rate: float = 0.0

    @classmethod
    def through(cls, small: tuple[float, float], large: tuple[float, float]) -> Line:
        """The line through two points (amount, seconds); neither part below 0.

        >>> Line.through((10, 3.0), (20, 4.0))
        Line(fixed=2.0, rate=0.1)
        """
        (x, s), (y, t) = small, large
        rate = max(0.0, t - s) / (y - x) if y > x else 0.0
        fixed = max(0.0, t - rate * y)
        return cls(fixed, (t - fixed) / y)


@dataclass(frozen=True)
class Calibration:
    """What one unit of each kind of work costs, and how long the prompts are.

    Attributes:
        lines: seconds; by padded tokens for work that runs the model.
        lengths: tokens of a sample of each part's prompts.
        unit: seconds of scoring one prompt.
        above: the same of passes that begin above kept states (:mod:`curerec.recommender.lower`), for the
            kinds that do; empty where none are kept.
        sizes: prompts of each part that there are, where ``above`` is not empty.
        layers: of the model.
        first: the layer that passes above kept states begin at.
        batch_bytes: of tensors alive at once in the largest pass in use.
    """

    lines: dict[Kind, Line]
    lengths: dict[Part, np.ndarray]
    unit: float
    above: dict[Kind, Line] = field(default_factory=dict)
    sizes: dict[Part, int] = field(default_factory=dict)
    layers: int = 1
    first: int = 0
    batch_bytes: int = 0

    def of_stages(self, work: Mapping[str, list[Work]]) -> dict[str, float]:
        """Seconds of every stage, in the order of the run: what one passes is kept for the next."""
        passed: dict[Part, int] = {}
        return {name: sum(self.seconds(one, passed) for one in part) for name, part in work.items()}

    def kept_tokens(self, work: Mapping[str, list[Work]]) -> float:
        """Tokens whose states are kept after all stages, where any are."""
        passed: dict[Part, int] = {}
        for part in work.values():
            for one in part:
                self.seconds(one, passed)
        return sum(n * float(self.lengths[part].mean()) for part, n in passed.items() if n)

    def seconds(self, work: Work, passed: dict[Part, int] | None = None) -> float:
        """Seconds of some work.

        Args:
            work: what is done.
            passed: prompts of each part whose states are kept by then; brought up to date. The same prompts
                are taken to come first every time.
        """
        line = self.lines[work.kind]
        if work.kind in ("encode", "pairs", "assign"):
            return work.times * (line.fixed + line.rate * work.n)
        if work.kind not in BATCH:
            return work.times * line.fixed
        whole = self._passes(line, work, work.n)
        if work.kind not in self.above or passed is None:
            return work.times * whole * (1 - work.begins / self.layers)
        known = passed.get(work.part, 0)
        new = max(0, min(work.n, self.sizes[work.part]) - known)
        passed[work.part] = known + new
        again = self._passes(self.above[work.kind], work, work.n)
        below = (whole - again) * new / max(1, work.n)  # once, however many passes there are
        left = (self.layers - max(work.begins, self.first)) / (self.layers - self.first)
        return work.times * again * left + below

    def _passes(self, line: Line, work: Work, n: int) -> float:
        batch = work.batch or BATCH[work.kind]
        return line.fixed * -(-n // batch) + line.rate * padded_tokens(self.lengths[work.part], n, batch)


def padded_tokens(lengths: np.ndarray, n: int, batch: int) -> float:
    """Tokens, padding included, of n prompts in batches of like length.

    Args:
        lengths: of a sample of such prompts.
        n: prompts.
        batch: prompts a batch.

    >>> padded_tokens(np.array([4, 6]), 4, 2)
    20.0
    """
    if n < 1:
        return 0.0
    drawn = np.quantile(lengths, (np.arange(n) + 0.5) / n, method="inverted_cdf")[::-1]
    return float(sum(drawn[k] * len(drawn[k : k + batch]) for k in range(0, n, batch)))


__all__ = ["Calibration", "Line", "padded_tokens"]
