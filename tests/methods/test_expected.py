"""The membership AUC to expect of a retrain: planted truths, and a real, tiny request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from curerec.methods.expected import (
    SPARE,
    Expectation,
    clusters,
    expectation,
    expected_auc,
    expected_membership,
    items_gone,
    placements,
    pool,
)
from curerec.methods.stopping import Stopping, Watch
from made_tasks import made_task

SLOPE, MEMORY = 0.6, 0.09


def people(rng, n_users, *, memory, own, differ=0.0, each=14):
    """Placements of users who differ in how hard they are: for the base, and for theta_o.

    Of what is hard for the base, :data:`SLOPE` is hard for a fine-tuned model, and ``own`` is by itself.
    """
    user = np.repeat(np.arange(n_users), each)
    hard = rng.normal(0, 0.12, n_users)
    retrain = SLOPE * hard + rng.normal(0, own, n_users)
    original = retrain + memory + rng.normal(0, differ, n_users)
    noise = rng.normal(0, 0.05, (2, len(user)))
    base, original = 0.5 + hard[user] + noise[0], 0.5 + original[user] + noise[1]
    return base, original, user, retrain


def test_slope_memory_and_weight_are_found_where_they_were_planted():
    rng = np.random.default_rng(0)
    unseen = people(rng, 4000, memory=0.0, own=0.06)[:3]
    seen = people(rng, 4000, memory=MEMORY, own=0.06, differ=0.06)[:3]
    found = expectation(unseen, seen)
    assert found.slope == pytest.approx(SLOPE, abs=0.02)
    assert found.memory == pytest.approx(MEMORY, abs=0.005)
    # Memory scatters as much as what the base misses.
    assert found.weight == pytest.approx(0.5, abs=0.05)
    assert (found.base, found.original) == pytest.approx((0.5, 0.5), abs=0.005)


@pytest.mark.parametrize(("differ", "least", "most"), [(0.0, 0.9, 1.0), (0.6, 0.0, 0.05)])
def test_theta_o_is_believed_as_far_as_memory_is_the_same_for_all(differ, least, most):
    rng = np.random.default_rng(1)
    unseen = people(rng, 2000, memory=0.0, own=0.06)[:3]
    seen = people(rng, 2000, memory=MEMORY, own=0.06, differ=differ)[:3]
    assert least <= expectation(unseen, seen).weight <= most


def test_it_is_nearer_to_a_retrain_than_the_base_and_than_a_half():
    """Groups of five users, as requests for 1 % are: the error of what is aimed for."""
    rng = np.random.default_rng(2)
    known = expectation(
        people(rng, 100, memory=0.0, own=0.06)[:3], people(rng, 100, memory=MEMORY, own=0.06, differ=0.06)[:3]
    )
    errors = []
    for _ in range(300):
        base, original, _, retrain = people(rng, 5, memory=MEMORY, own=0.06, differ=0.06)
        truth = 0.5 + retrain.mean()
        expected = known.of(base.mean(), original.mean())
        errors.append([expected - truth, base.mean() - truth, 0.5 - truth])
    ours, of_base, of_half = np.sqrt((np.array(errors) ** 2).mean(0))
    assert ours < 0.8 * min(of_base, of_half)


@pytest.mark.parametrize(("n_users", "each"), [(5, 14), (40, 14), (5, 60), (60, 3)])
def test_the_error_of_what_is_expected_covers_a_retrain(n_users, each):
    """Also for people with more or fewer examples than those it was learned from."""
    rng = np.random.default_rng(7)
    z, shared = [], []
    for _ in range(400):
        known = expectation(
            people(rng, 100, memory=0.0, own=0.06)[:3],
            people(rng, 100, memory=MEMORY, own=0.06, differ=0.06)[:3],
        )
        shared.append(known.between)
        base, original, user, retrain = people(rng, n_users, memory=MEMORY, own=0.06, differ=0.06, each=each)
        off = 0.5 + retrain.mean() - known.of(base.mean(), original.mean())
        z.append(off / known.error(user))
    assert np.mean(np.abs(z) > 1.96) < 0.05
    assert 0.5 < np.std(z) < 1.1  # at the most, and not far from it
    assert np.mean(shared) == pytest.approx(0.06**2, rel=0.1)


def test_where_nothing_differs_the_base_is_taken_as_it_is():
    flat = np.full(30, 0.5), np.full(30, 0.5), np.arange(30)
    assert expectation(flat, flat) == Expectation(1.0, 0.5, 0.5, 0.0, 0.0)
    assert expectation(flat, flat).of(0.56, 0.7) == pytest.approx(0.56)


def test_mean_placement_is_the_attack_s_auc():
    rng = np.random.default_rng(3)
    members, others = rng.integers(0, 9, 40) / 10, rng.integers(0, 9, 60) / 10  # with ties
    auc = roc_auc_score(np.r_[np.ones(40), np.zeros(60)], -np.r_[members, others])
    assert placements(members, others).mean() == pytest.approx(auc, abs=1e-12)


def test_clusters_are_taken_whole():
    cluster = np.array([4, 4, 2, 7, 2, 7, 7, 9])
    for size in (1, 3, 8, 50):
        found = pool(cluster, size)
        assert len(found) >= min(size, 8) and len(np.unique(found)) == len(found)
        for c in np.unique(cluster[found]):
            assert (cluster == c).sum() == (cluster[found] == c).sum()
    assert len(pool(cluster, 3)) <= 5


def test_the_order_of_people_is_the_same_whoever_else_is_there():
    """Training asks the base about those who come first; a request finds them stored, less the deleted."""
    rng = np.random.default_rng(5)
    cluster = np.repeat(np.arange(300), rng.integers(1, 9, 300))
    first = cluster[pool(cluster, round(SPARE * 400))]
    for gone in (rng.choice(300, 30, replace=False), np.arange(270, 300)):  # the last codes, too
        left = cluster[~np.isin(cluster, gone)]
        assert set(left[pool(left, 400)]) <= set(first)


@pytest.mark.parametrize("of", ["users", "items"])
def test_a_request_is_of_what_goes_whole_however_few_of_the_other_it_is_about(of):
    task = made_task(of=of)
    code = {"users": task.data.user_code, "items": task.data.item_code}
    other = code[{"users": "items", "items": "users"}[of]][task.forget.target]
    most = np.bincount(other).argmax()
    of_one = replace(task, forget=task.forget.take(other == most))
    assert len(np.unique(code[of][of_one.forget.target])) > 1  # of several, about one
    for request in (task, of_one):
        assert clusters(request) is code[of]


def test_single_ratings_are_of_whatever_they_are_fewer_of():
    task = made_task(of="interactions")
    data = task.data
    rows = task.forget.target
    for code in (data.user_code, data.item_code):
        most = np.bincount(code[rows]).argmax()
        assert clusters(replace(task, forget=task.forget.take(code[rows] == most))) is code


def test_of_items_that_nobody_is_trained_on_any_more_the_base_s_word_is_taken(monkeypatch):
    """All items of D_c were trained on by somebody: what holds of its people does not hold of new items."""
    monkeypatch.setattr("curerec.methods.expected.LEAST_CLUSTERS", 5)
    task = made_task()
    rng = np.random.default_rng(0)
    losses, aucs = (rng.uniform(0.2, 1.2, 15), rng.uniform(0.2, 1.2, 15)), (0.47, 0.6)
    told = [(task.base_logits(part), task.original_logits(part)) for part in (task.forget, task.control)]
    assert not items_gone(task)
    assert expected_auc(task, np.arange(15), losses, aucs) != aucs[0]
    assert expected_membership(task, *told) is not None
    item = task.data.item_code[task.retain.target]
    gone = np.isin(item, np.unique(item)[::10])
    of_items = replace(
        task, forget=task.retain.take(np.flatnonzero(gone)), retain=task.retain.take(np.flatnonzero(~gone))
    )
    assert items_gone(of_items)
    assert expected_auc(of_items, np.arange(15), losses, aucs) == aucs[0]
    assert expected_membership(of_items, *told) is None


def test_the_watch_aims_for_it_and_few_people_leave_the_base_s(monkeypatch):
    def watch(target):
        return Watch(made_task(), Stopping(check_size=15, target=target))

    assert watch("expected").target == watch("base").target  # 25 people in all of D_c
    monkeypatch.setattr("curerec.methods.expected.LEAST_CLUSTERS", 5)
    new = watch("expected")
    assert new.first == watch("base").first and 0 < new.target < 1 and new.target != watch("base").target
    assert watch("expected").target == new.target
    task = made_task()
    everyone = np.arange(len(task.control))  # nobody is left beside the reference
    losses = np.zeros(len(everyone)), np.zeros(len(everyone))
    assert expected_auc(task, everyone, losses, (0.47, 0.6)) == 0.47
