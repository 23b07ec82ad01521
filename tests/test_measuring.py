"""What a request's work is measured by: one slow moment tells nothing, and what is known costs nothing."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from curerec import measuring
from curerec.measuring import _assign, _pairs, calibrate, sizes_of
from curerec.methods import CureConfig
from curerec.methods.task import Task
from curerec.recommender.units import units_of
from curerec.workload import of_cure
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
