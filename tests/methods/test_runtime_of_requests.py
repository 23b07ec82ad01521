"""Whatever is fine-tuned for a request uses the machine as the recommender's training did."""

from __future__ import annotations

import importlib

import pytest

from curerec.methods import METHODS
from curerec.recommender.runtime import RuntimeConfig
from curerec.recommender.tune import TuneConfig
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
