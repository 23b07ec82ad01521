"""Where a run took place: what a record says of versions, device and memory."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from curerec.models import device
from curerec.recommender.fitting import memory_bytes
from curerec.source import packages, source_digest


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, and which source of this one (``source``).

    Among them are those of other packages that offer methods.
    """
    return {p: version(p) for p in ("curerec", "torch", "transformers", "peft", "numpy", "scikit-learn")} | {
        "python": platform.python_version(),
        "source": source_digest(),
        **packages(),
    }


def machine() -> dict[str, Any]:
    """Device, its name, processors and main memory (bytes) that may be used, and threads.

    On another processor training rounds otherwise, so which one it was is part of a result.
    """
    where = device()
    return {
        "device": where.type,
        "processor": _gpu_name() if where.type == "cuda" else processor_name(),
        "cores": processors(),
        "memory_bytes": memory_bytes(torch.device("cpu")),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _gpu_name() -> str:
    """Asked once: a GPU that is lost meanwhile says nothing any more, and the row of what lost it is due."""
    return str(torch.cuda.get_device_name())


def timed_on(shared: bool | None) -> dict[str, Any]:
    """What seconds that are taken now depend on beside the work: processor, threads, what runs beside it.

    Args:
        shared: whether other work is done on the same machine meanwhile; None: not known.
    """
    where = machine()
    return {"processor": where["processor"], "threads": where["threads"], "shared_machine": shared}


def processor_name() -> str:
    """The processor's model where Linux tells it, else what the platform says."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def processors() -> int:
    """Processors that this process may use; all where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
