"""Depth and relearning: the two ends of their scales, planted memories, and what cannot be said."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec.evaluation import METRICS, relearn
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.depth import drops, erased
from curerec.evaluation.metric import evaluate
from curerec.evaluation.relearn import curve, levels, relearned, shown, steps_to
from curerec.evaluation.utility import nll
from curerec.recommender.families import family_of
from made_models import shaken
from made_scene import made_scene, same_state, state


@pytest.mark.parametrize(("kind", "family"), [("full", "llama"), ("lora", "gpt2")])
def test_the_original_s_own_states_cost_nothing_and_the_last_layer_s_are_the_model_itself(kind, family):
    scene = made_scene(kind, family=family)
    guest = copy.deepcopy(scene.original.model)
    layers = family_of(guest).layer_list(guest)
    for layer in layers:
        shaken(layer)  # norm and readout stay the original's
    scene = replace(scene, subject=Candidate(guest))
    assert np.abs(drops(scene, scene.original)).max() < 1e-5
    mine, ground = drops(scene, scene.subject), scene.ground
    rows = ground.spread("forget", 256)
    label = scene.split.forget.label[rows]
    both = [nll(ground.memory(c, "forget")[rows], label) for c in (scene.original, scene.subject)]
    assert mine.shape == (len(layers), len(rows))
    assert mine[-1] == pytest.approx(both[1] - both[0], abs=1e-4)


def test_layers_without_a_drop_do_not_count():
    rng = np.random.default_rng(0)
    theirs = np.stack([rng.normal(0, 0.1, 500), rng.normal(0.3, 0.1, 500), rng.normal(0.4, 0.1, 500)])
    shares, kept = erased(np.stack([theirs[0], 0.5 * theirs[1], 9 * theirs[2]]), theirs)
    assert kept.tolist() == [False, True, True]
    assert shares[0] == pytest.approx([0.5, 1.0])


def test_of_a_single_example_no_depth_is_said():
    """There is no error to hold a layer's drop against; that no layer has one would be another thing."""
    scene = made_scene()
    alone = replace(scene.split, forget=scene.split.forget.take(np.arange(1)))
    found = evaluate(METRICS["depth"], replace(scene, ground=replace(scene.ground, split=alone, memo={})))
    assert found.value is None and "single deleted example" in found.missing


def test_steps_by_hand():
    assert steps_to(2.0, np.array([1.0])) == (0.0, False)
    assert steps_to(0.25, np.array([1.0, 0.5, 0.0])) == (1.5, False)
    assert steps_to(0.25, np.array([1.0, 0.5])) == (1.0, True)


def test_the_interval_of_five_draws_covers_where_a_bootstrap_of_five_does_not():
    rng, truth, times = np.random.default_rng(0), 0.9, 1500
    mine = bootstrapped = 0
    for _ in range(times):
        below = rng.normal(20, 4, 5)
        above = truth * below + rng.normal(0, 3, 5)
        low, high = relearn._spread(above, below)
        mine += low <= truth <= high
        drawn = rng.integers(0, 5, (200, 5))
        low, high = np.quantile(above[drawn].sum(1) / below[drawn].sum(1), [0.025, 0.975])
        bootstrapped += low <= truth <= high
    assert mine / times == pytest.approx(0.95, abs=0.02)
    assert bootstrapped / times == pytest.approx(0.84, abs=0.03)


def test_the_same_examples_are_shown_to_all_and_not_many():
    assert (shown(1000, 0, seed=1) == shown(1000, 0, seed=1)).all()
    assert len(shown(1000, 0, seed=1)) == 50 and len(shown(5, 0, seed=1)) == 5
    assert set(shown(1000, 0, seed=1)) != set(shown(1000, 1, seed=1))


@pytest.fixture
def forgotten(monkeypatch):
    """References that were driven away from the deleted examples, so that there is something to relearn."""
    monkeypatch.setattr(relearn, "DRAWS", 2)
    monkeypatch.setattr(relearn, "MAX_STEPS", 40)
    monkeypatch.setattr(relearn, "SLOWER", 1.0)
    scene = made_scene()
    ground = scene.ground

    def driven(steps: int, seed: int) -> Candidate:
        model = copy.deepcopy(scene.original.model)
        params = list(model.parameters())
        optimizer = torch.optim.SGD(params, lr=0.02)
        prompts = ground.prompts("forget")
        from curerec.recommender.score import answer_logits, to_batch

        ids, last = to_batch(prompts, np.arange(len(prompts)), torch.device("cpu"))
        label = torch.from_numpy(prompts.label.astype(np.int64))
        torch.manual_seed(seed)
        for _ in range(steps):
            logits = answer_logits(model, ids, last, ground.recommender.answers)
            optimizer.zero_grad()
            (-torch.nn.functional.cross_entropy(logits, label)).backward()
            optimizer.step()
        return Candidate(model.eval())

    references = (driven(12, 0), driven(14, 1))
    return replace(scene, references=references, subject=driven(5, 2))


def test_depth_orders_models_by_how_much_is_gone(forgotten):
    scene = replace(forgotten, references=forgotten.references[:1])
    twin = Candidate(copy.deepcopy(scene.references[0].model))
    found = [evaluate(METRICS["depth"], scene.of(c)) for c in (scene.original, scene.subject, twin)]
    assert found[0].value == pytest.approx(0, abs=1e-3) and found[2].value == pytest.approx(1)
    assert 0.1 < found[1].value < 0.9
    assert all(found[1].details["kept"])


def test_relearning_orders_models_by_how_much_is_left(forgotten):
    scene = forgotten
    before = state(scene.subject.model)
    ratio = {
        name: evaluate(METRICS["relearn_ratio"], scene.of(one))
        for name, one in (
            ("original", scene.original),
            ("half", scene.subject),
            ("twin", Candidate(copy.deepcopy(scene.references[0].model))),
        )
    }
    assert ratio["original"].value == 0  # it is below the level from the start
    assert ratio["original"].value <= ratio["half"].value < ratio["twin"].value
    assert 0.4 < ratio["twin"].value < 1.6
    assert evaluate(METRICS["relearn_steps"], scene).n == 2
    assert same_state(scene.subject.model, before)


def test_what_does_not_come_back_is_censored_and_said(forgotten, monkeypatch):
    monkeypatch.setattr(relearn, "MAX_STEPS", 1)
    monkeypatch.setattr(relearn, "SLOWER", 1e-6)
    scene = replace(forgotten, subject=Candidate(copy.deepcopy(forgotten.references[0].model)))
    value = evaluate(METRICS["relearn_ratio"], scene)
    assert value.value is None and "neither" in value.missing
    assert all(censored for _, censored in relearned(scene, scene.subject, levels(scene)))


def test_without_a_gap_there_is_nothing_to_relearn():
    scene = made_scene()
    scene = replace(scene, references=(scene.original, Candidate(scene.original.model)))
    assert "nothing to forget" in evaluate(METRICS["relearn_ratio"], scene).missing


def test_only_the_adapter_is_fine_tuned():
    scene = made_scene("lora")
    prompts = scene.ground.prompts("forget").take(np.arange(8))
    losses = curve(scene.ground, scene.subject.model, prompts, seed=0, stop_at=-1.0)
    assert len(losses) == 61 and losses[-1] < losses[0]


@pytest.mark.slow
def test_the_look_that_a_step_takes_anyway_is_the_look():
    """A model in training mode, here without dropout, is looked at anew after each step."""
    scene = made_scene()
    prompts = scene.ground.prompts("forget").take(np.arange(8))
    looked = copy.deepcopy(scene.subject.model).train()
    ways = [
        curve(scene.ground, model, prompts, seed=0, stop_at=-1.0) for model in (scene.subject.model, looked)
    ]
    assert np.allclose(*ways, atol=1e-5)
    half = (ways[0][0] + ways[0][-1]) / 2
    ends = [curve(scene.ground, m, prompts, seed=0, stop_at=half) for m in (scene.subject.model, looked)]
    assert len(ends[0]) == len(ends[1]) < 61
    assert np.allclose(*ends, atol=1e-5)
