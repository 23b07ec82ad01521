"""A model to measure: itself or its stored answers, and what its making cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curerec.records import Examples


@dataclass
class Candidate:
    """A model to measure.

    Attributes:
        model: torch module; None where only stored ``logits`` (and ``memory``) are at hand.
        t_core_s, t_total_s: seconds its making took; None where unknown.
        n_trainable: parameters that could change.
        rebuild: gives examples the histories that a method of retrieval shows; None: as they are. Membership
            is always measured with the histories as they are: it asks what the weights remember.
        logits: by part, with rebuilt histories.
        memory: by part, with histories as they are.
        known: of ``memory`` what need not be asked, by part, [n, 2]; rows of NaN are asked all the same.
        forward_equivalents, peak_mem_bytes, mem_rise_bytes: of :class:`curerec.evaluation.cost.Meter`.
        timed_on: what its seconds depend on beside the work: ``processor``, ``threads`` and
            ``shared_machine`` (whether other work was done there meanwhile); what is not there, or None, is
            not known.
        stop_reason: why its making ended, in words; empty where nothing stops it.
        memo: what metrics computed of this model and another scene may use again.
    """

    model: Any
    t_core_s: float | None = None
    t_total_s: float | None = None
    n_trainable: int | None = None
    rebuild: Callable[[Examples], Examples] | None = None
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    known: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    forward_equivalents: float | None = None
    peak_mem_bytes: int | None = None
    mem_rise_bytes: int | None = None
    timed_on: Mapping[str, Any] = field(default_factory=dict)
    stop_reason: str = ""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    def let_go(self) -> None:
        """Drop the model, and those that were made of it; what they answered is kept."""
        self.model = None
        for key, made in list(self.memo.items()):
            if isinstance(made, Candidate):
                made.let_go()
                if not made.logits:  # made, but not asked yet: to be made again
                    del self.memo[key]
