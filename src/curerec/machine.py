"""Where a run took place: what a record says of versions, device and memory."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import version
from typing import Any

import torch

from curerec.models import device


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {p: version(p) for p in ("curerec", "torch", "transformers", "peft", "numpy", "scikit-learn")} | {
        "python": platform.python_version()
    }


def machine() -> dict[str, Any]:
    """Device and threads."""
    where = device()
    name = (
        torch.cuda.get_device_name() if where.type == "cuda" else (platform.processor() or platform.machine())
    )
    return {"device": where.type, "processor": name, "threads": torch.get_num_threads()}


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
