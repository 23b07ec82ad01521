"""A result is measured and judged from answers that training kept, where they are to be had and exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec import pipeline
from curerec.evaluation import scene as scenes
from curerec.methods import task as tasks
from curerec.result import known_answers, original_and_base, result_of
from made_recommender import USERS, opened, trained


@pytest.fixture(scope="module", params=["full", "lora"])
def recommender(request, tmp_path_factory):
    return trained(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def scored(monkeypatch):
    """Prompts that each model scores, by the model's identity."""
    seen: dict[int, int] = {}
    real = scenes.score

    def count(model, prompts, answers, **more):
        seen[id(model)] = seen.get(id(model), 0) + len(prompts)
        return real(model, prompts, answers, **more)

    monkeypatch.setattr(scenes, "score", count)
    monkeypatch.setattr(tasks, "score", count)
    return seen


def numbers(value, path=""):
    """Every number of nested plain values, by path."""
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in numbers(one, f"{path}.{key}").items()}
    if isinstance(value, list):
        return numbers(dict(enumerate(value)), path)
    return {path: value} if isinstance(value, int | float) else {}


@pytest.mark.slow_but("full")
def test_what_training_kept_is_not_asked_again_and_the_numbers_are_the_same(recommender, scored):
    at = opened(recommender)
    outcome, split = pipeline.unlearn(at, USERS, "cure")
    sizes = {part: len(getattr(split, part)) for part in ("forget", "control", "valid", "test")}
    scored.clear()
    with_them = result_of(at, split, outcome, "cure")
    assert scored.pop(id(at.recommender.model)) == sizes["valid"] + sizes["test"]
    assert scored.pop(id(outcome.model)) == sum(sizes.values())
    assert not scored  # the base, of which all is known
    without = result_of(replace(at, answered=None), split, outcome, "cure")
    assert scored.pop(id(at.recommender.model)) >= sum(sizes.values())
    assert sum(scored.values()) >= sum(sizes.values()) + sizes["forget"] + sizes["control"]
    ours, theirs = (numbers([r.measured.metrics, r.verdict]) for r in (with_them, without))
    assert ours.keys() == theirs.keys() and len(ours) > 60
    for path, value in ours.items():
        assert value == pytest.approx(theirs[path], abs=1e-6), path


def test_answers_that_are_not_known_are_asked(recommender, scored):
    at = opened(recommender)
    split = pipeline.granted(at.data, at.recipe, at.split, USERS)
    for of_base in (False, True):
        whole = known_answers(at, split.control, base=of_base)
        logits = at.answered.base if of_base else at.answered.logits
        some = logits.copy()
        some[np.isin(at.answered.examples.target, split.control.target[::3])] = np.nan
        kept = replace(at.answered, **{"base" if of_base else "logits": some})
        one = original_and_base(replace(at, answered=kept), split)[of_base]
        scored.clear()
        ground = scenes.Ground(at.data, split, at.recommender)
        np.testing.assert_allclose(ground.memory(one, "control"), whole, atol=1e-5)
        assert scored == {id(one.model): len(split.control.target[::3])}
        assert np.isnan(one.known["control"]).any()  # the file's, left as they were


def test_answers_in_half_precision_are_asked(recommender):
    """There answers depend on the batch, and the verdict asks whether anything moved at all."""
    at = opened(recommender)
    split = pipeline.granted(at.data, at.recipe, at.split, USERS)
    assert known_answers(at, split.control) is not None
    next(iter(at.recommender.model.parameters())).data = torch.zeros(2, dtype=torch.bfloat16)
    assert known_answers(at, split.control) is None
