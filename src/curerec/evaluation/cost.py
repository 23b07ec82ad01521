"""What a method costs: a meter to run it under, and the metrics that read it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from curerec.evaluation.candidate import Candidate
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Ground, Scene
from curerec.recommender.counted import PassCount
from curerec.records import Examples

NO_METER = "it was not run under a meter (curerec.evaluation.cost.Meter)"
#: What seconds depend on beside the work (:attr:`Candidate.timed_on`), in words.
_TIMED = {"processor": "processor", "threads": "threads", "shared_machine": "other work beside it"}
LONG_S = 30.0  # seconds: noise of a machine is little beside it
_PROC = Path("/proc/self")


class Meter(PassCount):
    """Counts passes through any decoder (:class:`curerec.recommender.counted.PassCount`), and peak memory.

    Peak memory is that of the GPU's allocator, or on the CPU the largest resident set of the process, whose
    mark Linux lets a process take back (``/proc/self/clear_refs``) after what was freed before is handed back
    (``malloc_trim``); elsewhere it stays None. It holds all
    that the process had loaded before; ``mem_rise_bytes`` is how far it lies above what was held at first.

    Attributes:
        forward_equivalents: prompts.
        peak_mem_bytes: or None.
        mem_rise_bytes: or None.

    Example:
        >>> with Meter() as meter:
        ...     pass
        >>> meter.forward_equivalents
        0.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_mem_bytes: int | None = None
        self.mem_rise_bytes: int | None = None
        self._held: int | None = None

    def __enter__(self) -> Meter:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._held = torch.cuda.memory_allocated()
        elif _reset_mark():
            self._held = _read_mark()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if torch.cuda.is_available():
            self.peak_mem_bytes = torch.cuda.max_memory_allocated()
        elif self._held is not None:
            self.peak_mem_bytes = _read_mark()
        if self.peak_mem_bytes is not None and self._held is not None:
            self.mem_rise_bytes = max(0, self.peak_mem_bytes - self._held)


def latency_ratio(
    ground: Ground, original: Any, one: Candidate, *, size: int = 64, repeats: int = 3
) -> float:
    """How much longer an answer takes than the original's: seconds for validation prompts, best of some.

    From examples to answers, so a retrieval counts, a routing does, and each of several models that answer
    together.

    Args:
        ground: of the request.
        original: the model before unlearning.
        one: the unlearned model.
        size: prompts, spread over D_v.
        repeats: of both, in turn, so that other work on the machine slows both alike; a pair that takes more
            than :data:`LONG_S` is the last.

    Returns:
        The ratio; nan where D_v is empty.

    Source: this project.
    """
    if not len(ground.part("valid")):
        return float("nan")
    examples = ground.part("valid").take(ground.spread("valid", size))

    def seconds(model: Any, rebuild: Callable[[Examples], Examples] | None) -> float:
        start = time.perf_counter()
        ground.score(model, ground.encode(examples if rebuild is None else rebuild(examples)))
        return time.perf_counter() - start

    pairs: list[tuple[float, float]] = []
    while len(pairs) < repeats and (not pairs or sum(pairs[-1]) < LONG_S):
        pairs.append((seconds(one.model, one.rebuild), seconds(original, None)))
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


def _reset_mark() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):  # not glibc: what was freed counts on
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_PROC / "clear_refs").write_text("5")  # 5: the peak resident set starts anew
    except OSError:
        return False
    return True


def _read_mark() -> int | None:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _noted(name: str, reason: str) -> Callable[[Scene], Value]:
    def compute(scene: Scene) -> Value:
        value = getattr(scene.subject, name)
        if value is None:
            raise CannotError(reason)
        return Value(float(value))

    return compute


def _ratio(name: str, reason: str, *, timed: bool = False) -> Callable[[Scene], Value]:
    """Over the mean of all retrained models whose cost is known; the subject counts where it is one.

    Args:
        name: of the cost.
        reason: why it may not be known of the subject.
        timed: it is in seconds: only retrained models count that were timed under the same conditions.
    """

    def compute(scene: Scene) -> Value:
        subject = scene.subject
        mine = getattr(subject, name)
        known = [r for r in scene.references if getattr(r, name)]
        if mine is None or not known:
            raise CannotError(reason if mine is None else "the cost of no retrained model is known")
        other = [_differing(subject, r) if timed else "" for r in known]
        alike = [getattr(r, name) for r, why in zip(known, other, strict=True) if not why]
        if not alike:
            told = "; ".join(dict.fromkeys(other))
            raise CannotError(f"the retrained models were timed under other conditions: {told}")
        return Value(mine / float(np.mean(alike)), n=len(alike))

    return compute


def _differing(one: Candidate, retrain: Candidate) -> str:
    """Which conditions two models are known to have been timed under that differ, in words; empty: none."""
    pairs = ((said, one.timed_on.get(key), retrain.timed_on.get(key)) for key, said in _TIMED.items())
    return ", ".join(
        f"{said} ({_shown(theirs)}, here {_shown(ours)})"
        for said, ours, theirs in pairs
        if ours is not None and theirs is not None and ours != theirs
    )


def _shown(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


_SECONDS = "the seconds of its making are not known (only its weights were given)"
_SIZE = "how many parameters could change is not known (only its weights were given)"

T_CORE = Metric(
    "t_core_s",
    1,
    "seconds",
    "lower",
    (),
    "seconds in the update loop",
    "this project",
    _noted("t_core_s", _SECONDS),
)
T_TOTAL = Metric(
    "t_total_s",
    1,
    "seconds",
    "lower",
    (),
    "seconds of all that the request needed; loading and evaluation apart",
    "this project",
    _noted("t_total_s", _SECONDS),
)
RETRAIN_RATIO = Metric(
    "retrain_ratio",
    1,
    "1",
    "lower",
    ("retrain",),
    "t_total_s over the mean t_total_s of the retrained models timed under the same conditions",
    "this project",
    _ratio("t_total_s", _SECONDS, timed=True),
)
N_TRAINABLE = Metric(
    "n_trainable",
    1,
    "1",
    "lower",
    (),
    "parameters that could change",
    "this project",
    _noted("n_trainable", _SIZE),
)
PEAK_MEMORY = Metric(
    "peak_mem_bytes",
    1,
    "bytes",
    "lower",
    (),
    "largest memory while it ran: the GPU allocator's, or the resident set of the process",
    "this project",
    _noted("peak_mem_bytes", NO_METER),
)
MEM_RISE = Metric(
    "mem_rise_bytes",
    1,
    "bytes",
    "lower",
    (),
    "how far peak_mem_bytes lies above what was held when it began",
    "this project",
    _noted("mem_rise_bytes", NO_METER),
)
FORWARDS = Metric(
    "forward_equivalents",
    1,
    "forwards",
    "lower",
    (),
    "prompts passed forward + 2 x prompts passed backward",
    "this project",
    _noted("forward_equivalents", NO_METER),
)
FORWARD_RATIO = Metric(
    "forward_ratio",
    1,
    "1",
    "lower",
    ("retrain",),
    "forward_equivalents over the mean of the retrained models",
    "this project",
    _ratio("forward_equivalents", NO_METER),
)
