"""A step of an update leaves its numbers where they are: on a GPU every read would make the host wait."""

from __future__ import annotations

import traceback

import pytest
import torch

import curerec.methods.loop as loop
from curerec.methods import METHODS
from curerec.methods.cure import CureConfig
from curerec.methods.unlearn import UnlearnConfig
from made_tasks import made_task

READS = ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "nonzero")
LOOP = {
    "forget_loss": "rewind",
    "forget_every": 60,
    "retain_labels": 0.1,
    "damping": 0.1,
    "schedule": "linear",
    "paced": True,
    "max_steps": 6,
    "check_every": 3,
    "check_size": 20,
}
CASES = {
    "npo": UnlearnConfig(max_steps=6, check_every=3, check_size=20, schedule="linear"),
    "cure": CureConfig.model_validate(
        {
            **{"pairs": 12, "pair_pool": 20, "control_size": 30, "draws": 4, "scope": "all"},
            **{"granularity": "row", "saliency": 0.1, "project": "both"},
            "update": {**LOOP, "projection": "preconditioned"},
        }
    ),
}


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("method", CASES)
def test_a_step_reads_nothing_back(method, kind, monkeypatch):
    """But the first, which reckons the damping and, with ``forget_every``, the loss on all of D_f.

    Not counted: one truth value a pass that transformers reads when it makes the mask, and what theta_o is
    asked for some batches of D_r at a time where training stored no answers.
    """
    read: list[list[str]] = []
    inside = False

    def spy(name):
        plain = getattr(torch.Tensor, name)

        def counted(self, *args, **options):
            if inside and not any(
                "/transformers/" in at.filename or at.name == "retain_logits"
                for at in traceback.extract_stack()
            ):
                read[-1].append(name)
            return plain(self, *args, **options)

        return counted

    def optimise(params, steps, gradients, *args, **options):
        def watched(step):
            nonlocal inside
            read.append([])
            inside = True
            try:
                gradients(step)
            finally:
                inside = False

        return plain_optimise(params, steps, watched, *args, **options)

    plain_optimise = loop.optimise
    task = made_task(kind)
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, spy(name))
    monkeypatch.setattr(loop, "optimise", optimise)
    METHODS[method][0](task, CASES[method])
    assert len(read) == 6
    assert read[1:] == [[]] * 5
