"""Memory that runs out: one line and no traceback, and what is only done in advance is left out."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from curerec import cli
from curerec.cli import app, requests
from made_commands import curerec, refused

FULL = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    "python": MemoryError(),
}


def raising(error):
    def fail(*args, **more):
        raise error

    return fail


@pytest.mark.parametrize("where", FULL)
def test_it_is_told_in_a_line(where, monkeypatch):
    monkeypatch.setattr(cli, "_invoke", raising(FULL[where]))
    refused(curerec("verify", "x"), "out of memory", "smaller model")


def test_other_errors_of_that_kind_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(cli, "_invoke", raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1"):
        curerec("verify", "x")


@pytest.mark.parametrize("where", FULL)
def test_what_is_taken_in_advance_is_left_to_the_request_that_needs_it(where, monkeypatch, tmp_path):
    opened = SimpleNamespace(policy=SimpleNamespace(method="cure", seed=0))
    monkeypatch.setattr(requests, "_store", lambda folder: contextlib.nullcontext(opened))
    for error, outcome in (
        (FULL[where], contextlib.nullcontext()),
        (RuntimeError("another"), pytest.raises(RuntimeError, match="another")),
    ):
        monkeypatch.setattr("curerec.opened.open_recommender", raising(error))
        monkeypatch.setattr("curerec.requests.engine.prepare_next", raising(error))
        with outcome:
            app.prepared(None, tmp_path, None, None)
        with outcome:
            requests._prepared(tmp_path, None, None)
