"""What a store's record says of the new version's use."""

from __future__ import annotations

import types

import numpy as np

from curerec.requests.judging import _membership, _utility


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
