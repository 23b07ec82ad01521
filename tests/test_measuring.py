"""What a request's work is measured by: one slow moment tells nothing, and what is known costs nothing."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec import measuring
from curerec.circuits.belonging import modules_with_units
from curerec.measuring import REPEATS, _assign, _pairs, calibrate, sizes_of
from curerec.methods import METHODS, CureConfig
from curerec.methods.conflicts import Watcher
from curerec.methods.preconditioner import Preconditioner
from curerec.methods.rules import Rules
from curerec.methods.task import Task
from curerec.prompts import encoding
from curerec.recommender.tune import Averager
from curerec.recommender.units import units_of
from curerec.workload import of_cure
from made_models import made_model, with_lora
from made_tasks import made_task

SLOW = 0.3  # seconds


def slow_at_first(real, seconds=lambda *args, **more: 0.0):
    """A function whose first call takes :data:`SLOW` longer."""
    calls = []

    def run(*args, **more):
        time.sleep(seconds(*args, **more) + (0 if calls else SLOW))
        calls.append(None)
        return real(*args, **more)

    return run


@pytest.mark.slow
def test_one_slow_copy_is_not_taken_for_all(monkeypatch):
    monkeypatch.setattr(Task, "copy_of_model", slow_at_first(Task.copy_of_model))
    assert calibrate(made_task(), CureConfig()).lines["copy"].fixed < SLOW / 3


def test_one_slow_search_for_pairs_hides_no_rate(monkeypatch):
    def seconds(data, wanted, *rest):
        return 2e-3 * len(wanted)

    monkeypatch.setattr(measuring, "counterfactual_pairs", slow_at_first(lambda *args: None, seconds))
    found = _pairs(made_task(), CureConfig())
    assert found.rate == pytest.approx(2e-3, rel=0.5) and found.fixed < SLOW / 3


def test_one_slow_resampling_hides_no_rate(monkeypatch):
    def seconds(*args, draws, **more):
        return 5e-3 * draws

    monkeypatch.setattr(measuring, "assign", slow_at_first(lambda *args, **more: None, seconds))
    task = made_task()
    units = units_of(task.original.model, "head_mlp")
    found = _assign(task, CureConfig(), np.zeros((16, len(units.names))), units)
    assert found.rate == pytest.approx(5e-3, rel=0.5) and found.fixed < SLOW / 3


@pytest.mark.slow
def test_titles_are_encoded_together_as_in_a_run(monkeypatch):
    task = made_task()
    assert len(task.data.items) > 7
    asked, plain = [], encoding.encode_all_as_data
    monkeypatch.setattr(
        encoding, "encode_all_as_data", lambda made, texts: asked.append(len(texts)) or plain(made, texts)
    )
    monkeypatch.setattr(measuring, "TITLES", 7)
    calibrate(task, CureConfig())
    assert asked[0] == 7


class Told:
    """What is done between two updates of the running average, in order: a step beside its gradients."""

    def __init__(self, monkeypatch):
        self.steps = [[]]

        def watch(owner, name, about=lambda *args: ()):
            plain = getattr(owner, name)

            def told(*args, **options):
                self.steps[-1].append((name, *about(*args)))
                return plain(*args, **options)

            monkeypatch.setattr(owner, name, told)

        watch(Rules, "inside", lambda rules, gradients: (rules.masks is None,))
        watch(Rules, "combine", lambda rules, f, r, scale=None: (rules.both, scale is None))
        watch(Preconditioner, "factors")
        watch(Watcher, "combined")
        watch(Watcher, "moved")
        watch(torch.optim.AdamW, "step")
        watch(torch.nn.utils, "clip_grad_norm_")
        watch(torch.nn.utils, "clip_grad_value_")
        drawn = torch._foreach_lerp_
        monkeypatch.setattr(
            torch,
            "_foreach_lerp_",
            lambda a, b, weight: self.steps[-1].append(("drawn", weight)) or drawn(a, b, weight),
        )
        plain = Averager.update

        def update(averager):
            plain(averager)
            self.steps.append([])

        monkeypatch.setattr(Averager, "update", update)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "update"),
    [({}, {}), ({"saliency": 0.2, "project": "both"}, {"projection": "preconditioned", "anchor": 0.25})],
)
def test_a_step_is_measured_as_it_is_taken(settings, update, monkeypatch):
    steps = REPEATS + 1
    looks = {"schedule": "linear", "max_steps": steps, "check_every": steps, "check_size": 20, "damping": 0.1}
    sizes = {"pairs": 8, "pair_pool": 12, "control_size": 20, "draws": 4, "path_steps": 1, "scope": "all"}
    config = CureConfig.model_validate({**sizes, **settings, "update": {**looks, **update}})
    task = made_task()
    told = Told(monkeypatch)
    METHODS["cure"][0](task, config)
    taken, told.steps = told.steps, [[]]
    calibrate(task, config)
    assert len(told.steps) == len(taken) == steps + 1
    assert told.steps[2] == taken[2]
    names = [name for name, *_ in taken[2]]
    want = ["inside", "inside", *["factors"] * bool(update), "combine", "combined", "step"]
    assert names == [*want, *["drawn"] * bool(update), "moved", "drawn"]  # the last into the average


@pytest.mark.parametrize(("granularity", "heads"), [("head_mlp", 4), ("row", 8)])
def test_modules_counted_are_those_that_hold_a_unit(granularity, heads):
    """With heads as units keys and values that several heads share are the first one's: the rest has none."""
    task = made_task("lora")
    model = with_lora(made_model(len(task.original.tokenizer)), ["k_proj", "v_proj"])
    task = replace(task, original=replace(task.original, model=model))
    config = CureConfig(granularity=granularity)
    sizes = sizes_of(task, config)
    assert (sizes.heads, sizes.mlps) == (heads, 0)
    assert sizes.heads == len(modules_with_units(model, granularity))


@pytest.mark.parametrize("target", ["base", "expected"])
@pytest.mark.parametrize("forget_loss", ["npo", "rewind"])
def test_a_base_whose_answers_are_known_is_not_loaded(target, forget_loss):
    config = CureConfig()
    update = config.update.model_copy(update={"target": target, "forget_loss": forget_loss})
    config = config.model_copy(update={"update": update})
    asked = sizes_of(made_task())
    known = replace(asked, base_forget=0.0, base_retain=0.0, base_control=0.0)
    loaded = [
        sum(w.times for part in of_cure(config, sizes).values() for w in part if w.kind == "base")
        for sizes in (asked, known)
    ]
    assert loaded[0] > 0 == loaded[1]
