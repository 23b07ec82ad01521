"""What the C library is asked to keep, and what an older one can."""

from __future__ import annotations

import sys
import types

import pytest

from curerec.recommender import memory

TRIM, MMAP = -1, -3


@pytest.mark.parametrize(("most", "done"), [(1 << 31, True), (32 << 20, True), (1 << 20, False)])
def test_an_older_library_keeps_the_blocks_that_it_can(most, done, monkeypatch):
    asked = []

    def mallopt(option, value):
        asked.append((option, value))
        return int(option == TRIM or value <= most)

    library = types.SimpleNamespace(mallopt=mallopt, gnu_get_libc_version=None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert memory.keep_freed.__wrapped__() == done
    again = [] if most > 1 << 30 else [(MMAP, 32 << 20)]
    assert asked == [(TRIM, 1 << 30), (MMAP, 1 << 30), *again]
