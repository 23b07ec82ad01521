"""A step of an update leaves its numbers where they are: on a GPU every read would make the host wait."""

from __future__ import annotations

import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import curerec
from curerec.circuits.patching import patched_margins
from curerec.methods import METHODS
from curerec.methods.cagrad.method import CagradConfig
from curerec.methods.cau.method import CauConfig
from curerec.methods.cure import CureConfig
from curerec.methods.gru.method import GruConfig
from curerec.methods.ngdiff.method import NgdiffConfig
from curerec.methods.pcgrad.method import PcgradConfig
from curerec.methods.unlearn import UnlearnConfig
from curerec.methods.weighted_sum.method import WeightedSumConfig
from curerec.recommender.score import score
from curerec.recommender.shared import last_states
from made_cases import in_turn
from made_models import made_model, made_prompts, other_titles
from made_steps import Steps
from made_tasks import made_task

OURS = str(Path(curerec.__file__).parent)  # a virtual environment may lie in a folder of the same name
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
LOOKS = {"max_steps": 6, "check_every": 3, "check_size": 20, "schedule": "linear"}
CASES = {
    "npo": UnlearnConfig.model_validate(LOOKS),
    "cure": CureConfig.model_validate(
        {
            **{"pairs": 12, "pair_pool": 20, "control_size": 30, "draws": 4, "scope": "all"},
            **{"granularity": "row", "saliency": 0.1, "project": "both"},
            "update": {**LOOP, "projection": "preconditioned"},
        }
    ),
    # Rules on whole vectors, by batches and with a kept forget gradient.
    "weighted_sum": WeightedSumConfig.model_validate(LOOKS),
    "pcgrad": PcgradConfig.model_validate(LOOP | {"projection": "preconditioned"}),
    "cagrad": CagradConfig.model_validate(LOOKS),
    "gru": GruConfig.model_validate(LOOP | {"descend_retain": True}),
    "ngdiff": NgdiffConfig.model_validate(LOOKS | {"rate_every": 2}),
    "cau": CauConfig.model_validate(LOOKS | {"reference_size": 20}),
}
#: What theta_o is asked for batch by batch where training stored no answers.
ASKED = ("retain_logits", "original_logits")


def counts() -> bool:
    """Whether what asks for a number of a tensor is the step itself."""
    asks = traceback.extract_stack()
    return not any("/transformers/" in at.filename or at.name in ASKED for at in asks)


class Within(TorchDispatchMode):
    """Notes what torch reads by itself in a step, as of a tensor that is given for a number."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.steps.inside and func.name() == "aten::_local_scalar_dense" and counts():
            self.steps.note(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.slow_but("cure-full", "pcgrad-full", "gru-full", "ngdiff-full")
@in_turn(method=CASES, kind=["full", "lora"])
def test_a_step_reads_nothing_back(method, kind, monkeypatch):
    """But the first, which reckons the damping and, with ``forget_every``, the loss on all of D_f.

    Not counted: one truth value a pass that transformers reads when it makes the mask, and what theta_o is
    asked for where training stored no answers.
    """
    steps = Steps(monkeypatch)

    def spy(name):
        plain = getattr(torch.Tensor, name)

        def counted(self, *args, **options):
            if steps.inside and counts():
                steps.note(name)
            return plain(self, *args, **options)

        return counted

    task = made_task(kind)
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, spy(name))
    with Within(steps):
        METHODS[method][0](task, CASES[method])
    assert len(steps.noted) == 6
    assert steps.noted[1:] == [[]] * 5


@pytest.mark.slow_but("cure-full", "npo-full", "gru-full")
@in_turn(method=CASES, kind=["full", "lora"])
def test_a_step_uploads_nothing_but_its_batches(method, kind, monkeypatch):
    """What goes to a GPU unpinned is waited for, and so is an array that indexes a tensor there."""
    steps = Steps(monkeypatch)
    plain_from, plain_item = torch.from_numpy, torch.Tensor.__getitem__

    def from_numpy(array):
        names = [at.name for at in traceback.extract_stack()] if steps.inside else []
        if names and names[-2] != "on" and not set(ASKED) & set(names):  # as above
            steps.note(names[-2])
        return plain_from(array)

    def getitem(self, index):
        parts = index if isinstance(index, tuple) else (index,)
        if steps.inside and any(isinstance(part, np.ndarray) for part in parts):
            steps.note(f"{traceback.extract_stack()[-2].name}: indexed by an array")
        return plain_item(self, index)

    task = made_task(kind)
    monkeypatch.setattr(torch, "from_numpy", from_numpy)
    monkeypatch.setattr(torch.Tensor, "__getitem__", getitem)
    METHODS[method][0](task, CASES[method])
    assert len(steps.noted) == 6 and steps.noted[1:] == [[]] * 5


class Device:
    """Notes what would be waited for on a GPU: uploads that are not pinned, and reads."""

    def __init__(self, monkeypatch):
        self.uploads, self.reads = [], []
        plain_from, plain_tensor, plain_cpu = torch.from_numpy, torch.tensor, torch.Tensor.cpu

        def from_numpy(array):
            caller = traceback.extract_stack()[-2]
            if caller.name != "on":
                self.uploads.append(caller.name)
            return plain_from(array)

        def tensor(*args, **options):
            caller = traceback.extract_stack()[-2]
            if caller.filename.startswith(OURS):
                self.uploads.append(caller.name)
            return plain_tensor(*args, **options)

        def cpu(x):
            self.reads.append(traceback.extract_stack()[-2].name)
            return plain_cpu(x)

        monkeypatch.setattr(torch, "from_numpy", from_numpy)
        monkeypatch.setattr(torch, "tensor", tensor)
        monkeypatch.setattr(torch.Tensor, "cpu", cpu)


def test_lists_are_uploaded_pinned_and_their_answers_read_once(monkeypatch):
    prompts, encoder = made_prompts(6)
    lists = prompts.take(np.repeat(np.arange(6), 5))  # of whose neighbours all tokens are shared
    model = made_model(len(encoder.tokenizer))
    score(model, lists, encoder.answers)  # what is kept for later calls is made by the first
    seen, shared, plain = Device(monkeypatch), [], last_states
    monkeypatch.setattr("curerec.recommender.score.last_states", lambda *a: shared.append(1) or plain(*a))
    score(model, lists, encoder.answers, batch_size=5)
    assert len(shared) > 1 and seen.reads == ["score"]
    assert seen.uploads in ([], ["looked_up"])  # a table, once a call


def test_patched_passes_upload_nothing_unpinned_and_are_read_once(monkeypatch):
    prompts, encoder = made_prompts(6)
    corrupt, model = other_titles(prompts, len(encoder.tokenizer)), made_model(len(encoder.tokenizer))
    sets = [set(), {"layers.0.head.0", "layers.1.mlp"}, {"layers.1.head.1", "layers.0.head.0"}]
    want = patched_margins(model, prompts, corrupt, encoder.answers, sets)
    seen = Device(monkeypatch)
    found = patched_margins(model, prompts, corrupt, encoder.answers, sets, batch_size=2)
    assert seen.uploads == [] and seen.reads == ["margins_with"]
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert found.dtype == np.float32 and found.shape == (3, 6)
