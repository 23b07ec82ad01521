"""Peak memory of one stretch of work inside a process that lives longer."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from curerec.machine import peak_memory_bytes
from curerec.models import device

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Peak memory since it was made, bytes: the device's on CUDA, else the resident set.

    On Linux the kernel's high-water mark is set back first. Elsewhere it cannot be, and the peak is that of
    the whole process so far (:attr:`exact` is false).
    """

    def __init__(self) -> None:
        self.cuda = device().type == "cuda"
        self.exact = True
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            CLEAR.write_text("5")  # proc(5): resets the peak resident set
        except OSError:
            self.exact = False

    def bytes(self) -> int:
        """The peak until now."""
        if self.cuda:
            return int(torch.cuda.max_memory_allocated())
        if self.exact:
            found = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
            if found:
                return int(found[1]) * 1024
        return peak_memory_bytes()
