"""What a store's record says of the new version's use."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from curerec.recipes import load_recipe
from curerec.requests import judging
from curerec.requests.judging import _membership, _utility
from curerec.requests.store import config_digest


def width(users: np.ndarray) -> float:
    """Of the interval of the AUC before, for examples by these users."""
    rng = np.random.default_rng(0)
    label = (np.arange(400) % 2).astype(np.int8)
    of_user = rng.normal(size=int(users.max()) + 1)[users]  # what a user's examples have in common
    margin = 0.5 * (2 * label - 1.0) * (1 + 3 * of_user) + rng.normal(size=400)
    logits = np.stack([np.zeros(400), margin], 1)
    split = types.SimpleNamespace(valid=types.SimpleNamespace(label=label, target=np.arange(400)))
    opened = types.SimpleNamespace(data=types.SimpleNamespace(user_code=users))
    one = types.SimpleNamespace(logits={"valid": logits})
    before, after = _utility(opened, split, one, one)
    assert (before["low"], before["high"]) == (after["low"], after["high"])
    assert before["low"] <= before["value"] <= before["high"] and before["n"] == 400
    return before["high"] - before["low"]


def test_intervals_are_over_users():
    """A user's examples are alike: rows drawn by themselves would promise too much."""
    assert width(np.repeat(np.arange(20), 20)) > 1.5 * width(np.arange(400))


def test_one_user_alone_has_an_interval_over_rows():
    assert width(np.zeros(400, dtype=int)) >= 0


def test_a_membership_without_an_interval_is_stored_without_one():
    """Of a deleted example or two there is none; the update is done by then, and its record has to be."""
    job = types.SimpleNamespace(method="cure")
    split = types.SimpleNamespace(forget=range(2), control=range(300))
    measured = types.SimpleNamespace(metrics={"cure": {"membership_auc": 0.9}})
    found = _membership(job, split, measured)
    assert found["value"] == 0.9 and found["low"] is found["high"] is None and found["n_forget"] == 2


@pytest.mark.parametrize("kind", ["users", None])
def test_a_report_has_the_store_s_own_word_on_the_base_and_no_path(kind, monkeypatch):
    """Drawn again from a table that people have left, other people would be said to be in the base."""
    asked = {}

    def recorded(opened, request, *rest, seen, **more):
        asked.update(kind=request.kind, n=len(request.ids), seen=seen)
        return {
            "request": {"kind": request.kind, "share": 0.5},
            "dataset": {},
            "model": {"base": "/home/eve/b"},
        }

    monkeypatch.setattr(judging, "record_of", recorded)
    recipe = load_recipe("demo")
    recipe = recipe.model_copy(
        update={"data": "/home/eve/d", "model": recipe.model.model_copy(update={"base": "/home/eve/b"})}
    )
    opened = types.SimpleNamespace(
        recipe=recipe, recommender=types.SimpleNamespace(base={"name": "/home/eve/b", "sha256": "0"})
    )
    job = types.SimpleNamespace(
        kind=kind,
        n_ids=3,
        method="cure",
        seed=0,
        pseudonym="keyed:b-1",
        table=types.SimpleNamespace(public="stored"),
    )
    report = judging._report(job, opened, None, None, None, verdict={}, output="", update={})
    assert asked == {"kind": kind or "interactions", "n": 3, "seen": "stored"}
    assert report["request"] == {"kind": kind, "share": 0.5 if kind else None, "digest": "keyed:b-1"}
    about = judging._about(opened)
    assert "/home/eve" not in json.dumps([report, about])
    assert about["algorithm"]["config_sha256"] == config_digest(about["algorithm"]["config"])
