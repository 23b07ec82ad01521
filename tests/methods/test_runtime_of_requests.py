"""Whatever is fine-tuned for a request uses the machine as the recommender's training did."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from curerec.methods import METHODS
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.loop import free, tuned_names
from curerec.methods.unlearn import UnlearnConfig
from curerec.recommender import fitting, runtime
from curerec.recommender.families import family_of
from curerec.recommender.runtime import Offload, RuntimeConfig
from curerec.recommender.tune import TuneConfig
from made_families import made_family_model
from made_steps import Steps
from made_tasks import made_task

TUNING = {"epochs": 1.0, "batch_size": 32, "lr": 1e-3}
TRAINS = {
    "retrain": ("curerec.methods.retrain.method", {}),
    "task_vector": ("curerec.methods.task_vector.method", {"tuning": TUNING, "check_size": 20}),
    "e2urec": ("curerec.methods.teachers", {"teacher": TUNING, "check_size": 20, "max_steps": 2}),
    "sisa": ("curerec.methods.shards.training", {"shards": 2}),
}


@pytest.mark.parametrize("method", TRAINS)
def test_a_training_for_a_request_is_given_what_the_recommender_s_was(method, monkeypatch):
    """A recommender that needs checkpointing to be trained needs it again to be retrained."""
    module, values = TRAINS[method]
    where, seen = importlib.import_module(module), []
    plain = where.tune

    def spied(*args, **options):
        seen.append(options.get("runtime"))
        return plain(*args, **options)

    monkeypatch.setattr(where, "tune", spied)
    task = made_task()
    task.runtime, task.tuning = RuntimeConfig(checkpoint=True), TuneConfig(**TUNING)
    run, config = METHODS[method]
    run(task, config.model_validate(values) if config else None)
    assert seen and all(one is task.runtime for one in seen)


LOOP = {
    "max_steps": 3,
    "check_every": 3,
    "check_size": 20,
    "max_auc_drop": 1,
    "batch_size": 8,
    "damping": 0.1,
}
STEPPING = {
    "npo": LOOP,
    "bad_teacher": LOOP,
    "grad_diff": LOOP,
    "e2urec": {**LOOP, "teacher": TUNING},
}


class Passes:
    """Notes in each step every pass with gradients through the MLP of the first layer."""

    def __init__(self, monkeypatch, task):
        self.steps = Steps(monkeypatch)
        mlp = family_of(task.original.model).layer_list(task.original.model)[0].get_submodule("mlp")
        mlp.is_first = True  # and so is the copy's that changes
        plain, kind = type(mlp).forward, type(mlp)

        def forward(module, x):
            if getattr(module, "is_first", False) and torch.is_grad_enabled():
                self.steps.note("pass")
            return plain(module, x)

        monkeypatch.setattr(kind, "forward", forward)

    @property
    def counts(self):
        return [len(noted) for noted in self.steps.noted]


@pytest.mark.slow_but("*-full")
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("method", STEPPING)
def test_with_checkpoints_a_step_passes_each_layer_twice_and_ends_alike(method, kind, monkeypatch):
    def updated(use):
        with monkeypatch.context() as patched:
            task = made_task(kind)
            task.runtime = use
            passes = Passes(patched, task)
            run, config = METHODS[method]
            model = run(task, config.model_validate(STEPPING[method])).model
        assert not any(m.training or getattr(m, "gradient_checkpointing", False) for m in model.modules())
        return dict(model.named_parameters()), passes.counts

    want, once = updated(RuntimeConfig())
    found, twice = updated(RuntimeConfig(checkpoint=True))
    assert min(once) > 0 and twice == [2 * n for n in once]
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("use", [RuntimeConfig(checkpoint=True), RuntimeConfig(offload_bytes=1 << 30)])
def test_the_gradient_of_all_of_d_f_uses_the_machine_so_too(use, monkeypatch):
    monkeypatch.setattr(runtime.Offload.__init__, "__kwdefaults__", {"smallest_bytes": 64})
    made = {}
    monkeypatch.setattr(runtime, "_of_all_passes", lambda n: made.setdefault(n, Offload(n)), raising=False)
    found = []
    for config in (RuntimeConfig(), use):
        task = made_task()
        task.runtime = config
        model = task.copy_of_model()
        params = free(model, tuned_names(model))
        objective = ForgetObjective.of(task, UnlearnConfig())
        with monkeypatch.context() as patched:
            passes = Passes(patched, task)
            passes.steps.noted, passes.steps.inside = [[]], True
            for m in model.modules():
                m.is_first = m is family_of(model).layer_list(model)[0].get_submodule("mlp")
            found.append((objective.gradient(model, params, batch_size=8)[0], passes.counts[0]))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)
    assert found[1][1] == (2 if use.checkpoint else 1) * found[0][1] > 0
    if use.offload_bytes:
        assert made[1 << 30].peak_bytes > 0 == made[1 << 30].held_bytes


def test_more_prompts_are_reckoned_to_fit_a_step_that_keeps_little(monkeypatch):
    seen = []
    plain = fitting.prompts_that_fit
    for user in ("recommender.score", "methods.unlearn"):
        monkeypatch.setattr(
            f"curerec.{user}.prompts_that_fit",
            lambda model, pos, use=None: seen.append(use) or plain(model, pos, use),
        )
    task = made_task()
    task.runtime = RuntimeConfig(checkpoint=True)
    METHODS["npo"][0](task, UnlearnConfig(max_steps=1, check_size=20, batch_size=8))
    METHODS["bad_teacher"][0](task, METHODS["bad_teacher"][1].model_validate(LOOP))
    assert len(seen) > 3 and all(one is task.runtime for one in seen)


def test_layers_are_checkpointed_in_a_model_that_drops_nothing_out():
    """Of GPT-2 every layer drops out in training mode; a layer's own mode alone does not make it."""
    model = made_family_model("gpt2", 40, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).eval()
    model.requires_grad_(True)
    ids = torch.from_numpy(np.arange(12).reshape(2, 6))
    want = model(ids).logits
    with runtime.kept_few(model, RuntimeConfig(checkpoint=True)):
        got = model(ids).logits
        layers = family_of(model).layer_list(model)
        assert all(m.training and m.gradient_checkpointing for m in layers)
        assert not any(m.training for layer in layers for m in layer.modules() if m is not layer)
    assert not any(m.training for m in model.modules()) and torch.equal(got, want)
    grads = [
        torch.autograd.grad(x.sum(), model.get_parameter("transformer.wpe.weight"))[0] for x in (got, want)
    ]
    assert torch.equal(*grads)
