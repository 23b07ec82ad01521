"""The meter: prompts forward and backward, and the peak of the memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.evaluation import METRICS
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.cost import LONG_S, Meter, latency_ratio
from curerec.evaluation.metric import evaluate
from curerec.measure import candidate
from curerec.recommender.score import answer_logits, score, to_batch
from curerec.records import Outcome
from made_models import made_prompts
from made_scene import made_scene


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_backward_pass_counts_twice_a_forward_one(kind):
    scene = made_scene(kind)
    model, answers = scene.subject.model, scene.ground.recommender.answers
    prompts, _ = made_prompts(12)
    with Meter() as meter:
        score(model, prompts, answers, batch_size=5)
    assert meter.forward_equivalents == 12
    model.requires_grad_(True)
    with Meter() as meter:
        loss = answer_logits(model, *to_batch(prompts, np.arange(5), torch.device("cpu")), answers).sum()
        loss.backward()
    assert meter.forward_equivalents == 15
    score(model, prompts, answers)
    assert meter.forward_equivalents == 15  # outside it counts no more


def test_memory_of_what_runs_inside_alone():
    def peak(mib: int) -> int | None:
        with Meter() as meter:
            held = torch.ones(mib << 18)
            del held
        return meter.peak_mem_bytes

    large, small = peak(300), peak(1)
    if large is None or torch.cuda.is_available():
        pytest.skip("this system does not let the mark be taken back")
    assert large - small > 200 << 20


def test_costs_are_read_and_related():
    scene = made_scene()
    scene.subject.t_total_s, scene.subject.forward_equivalents = 5.0, 30.0
    for r, seconds in zip(scene.references, (80.0, 120.0), strict=True):
        r.t_total_s, r.forward_equivalents = seconds, 300.0
    assert evaluate(METRICS["retrain_ratio"], scene).value == pytest.approx(0.05)
    assert evaluate(METRICS["forward_ratio"], scene).value == pytest.approx(0.1)
    assert evaluate(METRICS["retrain_ratio"], scene.of(scene.references[0])).value == pytest.approx(0.8)
    assert "meter" in evaluate(METRICS["peak_mem_bytes"], scene).missing


SITTING = {"processor": "A", "threads": 1, "shared_machine": False}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"threads": 2}, "threads (1, here 2)"),
        ({"processor": "B"}, "processor (A, here B)"),
        ({"shared_machine": True}, "other work beside it (no, here yes)"),
        ({"threads": 2, "shared_machine": True}, "threads (1, here 2), other work beside it (no, here yes)"),
        ({"threads": None}, None),  # not known
        ({}, None),
    ],
)
def test_seconds_of_other_conditions_make_no_ratio(change, told):
    scene = made_scene()
    scene.subject.t_total_s, scene.subject.forward_equivalents = 5.0, 30.0
    scene.subject.timed_on = {**SITTING, **change}
    for r in scene.references:
        r.t_total_s, r.forward_equivalents, r.timed_on = 100.0, 300.0, SITTING
    found = evaluate(METRICS["retrain_ratio"], scene)
    assert found.value == (None if told else pytest.approx(0.05)) and (told or "") in found.missing
    assert evaluate(METRICS["forward_ratio"], scene).value == pytest.approx(0.1)
    assert evaluate(METRICS["t_total_s"], scene).value == 5
    scene.references[0].timed_on, scene.references[0].t_total_s = (
        {**SITTING, **change},
        50.0,
    )  # one of several
    assert evaluate(METRICS["retrain_ratio"], scene).value == pytest.approx(0.1 if told else 5 / 75)
    for r in scene.references:
        r.timed_on = {}  # of before, when nothing was said
    assert evaluate(METRICS["retrain_ratio"], scene).value == pytest.approx(5 / 75)


def test_a_candidate_takes_what_the_meter_read():
    prompts, encoder = made_prompts(4)
    model = made_scene().subject.model
    with Meter() as meter:
        score(model, prompts, encoder.answers)
    assert candidate(Outcome("npo", model, 1.0, 2.0), meter).forward_equivalents == 4


class Timed:
    """A ground whose clock runs with what is done: encoding and scoring cost as said, nothing else."""

    def __init__(self, seconds):
        self.now, self.seconds, self.sizes = 0.0, seconds, []

    def part(self, name):
        return np.arange(100).view(Few)

    def spread(self, name, size):
        return np.arange(size)

    def encode(self, examples):
        self.sizes.append(len(examples))
        self.now += 1.0
        return examples

    def score(self, model, prompts):
        self.now += self.seconds[model]


class Few(np.ndarray):
    def take(self, index):
        return self[index]


def test_latency_counts_retrieval_and_every_model_from_the_example_on(monkeypatch):
    ground = Timed({"original": 3.0, "routed": 7.0, "original's own": 3.0})
    monkeypatch.setattr("curerec.evaluation.cost.time.perf_counter", lambda: ground.now)

    def retrieve(examples):
        ground.now += 2.0
        return examples

    assert latency_ratio(ground, "original", Candidate("original's own")) == 1
    assert latency_ratio(ground, "original", Candidate("routed")) == 8 / 4
    found = latency_ratio(ground, "original", Candidate("original's own", rebuild=retrieve), size=10)
    assert found == 6 / 4 and ground.sizes[-1] == 10
    ground.seconds["routed"] = 2 * LONG_S  # a large model: once is enough
    ground.sizes.clear()
    assert latency_ratio(ground, "original", Candidate("routed")) == (2 * LONG_S + 1) / 4
    assert len(ground.sizes) == 2
