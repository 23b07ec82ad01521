"""Retrieval shows nothing that is deleted, and each strategy picks what it says."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.data.splits import examples
from curerec.methods.cragru.method import CragruConfig, cragru, title_vectors
from curerec.methods.cragru.retrieval import Retriever
from made_catalogue import made_catalogue
from made_tasks import made_task

STRATEGIES = ("preference", "diversity", "attention")


def setting(strategy, *, size=10, pool=50, seed=0, **more):
    data = made_catalogue(per_user=(25, 40), seed=3)
    rng = np.random.default_rng(seed)
    deleted = rng.random(len(data)) < 0.3
    vectors = rng.normal(size=(len(data.items), 6))
    return data, deleted, Retriever(data, deleted, vectors, strategy, pool=pool, **more)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_histories_hold_only_what_is_left_of_the_user_s_past(strategy):
    data, deleted, retrieve = setting(strategy)
    asked = examples(data, np.arange(len(data)))
    got = retrieve(asked)
    np.testing.assert_array_equal(got.target, asked.target)
    np.testing.assert_array_equal(got.label, asked.label)
    shown = got.history >= 0
    rows = got.history[shown]
    target = np.repeat(got.target, shown.sum(1))
    assert not deleted[rows].any()
    assert (rows < target).all() and (data.user_code[rows] == data.user_code[target]).all()
    for h in got.history:
        mine = h[h >= 0]
        assert (h[: len(h) - len(mine)] == -1).all() and (np.diff(mine) > 0).all()
    left = np.asarray([(~deleted[data.first[data.user_code[t]] : t]).sum() for t in got.target])
    np.testing.assert_array_equal(shown.sum(1), np.minimum(left, 10))


def test_a_user_all_of_whose_interactions_are_deleted_has_no_history():
    data, deleted, retrieve = setting("attention")
    deleted[data.user_code == 4] = True
    asked = examples(data, np.flatnonzero(data.user_code == 4))
    assert len(asked) and (retrieve(asked).history == -1).all()


def test_preference_takes_the_best_rated():
    data, deleted, retrieve = setting("preference")
    got = retrieve(examples(data, np.arange(len(data))))
    for t, h in zip(got.target, got.history, strict=True):
        past = np.arange(data.first[data.user_code[t]], t)
        past = past[~deleted[past]]
        out = np.setdiff1d(past, h)
        if len(out):
            assert data.rating[h[h >= 0]].min() >= data.rating[out].max()


def test_attention_takes_the_largest_weights():
    data, deleted, retrieve = setting("attention")
    got = retrieve(examples(data, np.arange(len(data))))
    for t, h in zip(got.target, got.history, strict=True):
        past = np.arange(data.first[data.user_code[t]], t)
        past = past[~deleted[past]]
        weight = retrieve.vectors[data.item_code[past]] @ retrieve.vectors[data.item_code[t]]
        assert set(h[h >= 0]) == set(past[np.argsort(-weight, kind="stable")][:10])


def test_diversity_is_greedy_marginal_relevance():
    data, _, retrieve = setting("diversity", trade=0.3)
    rows, t = np.arange(data.first[data.user_code[-1]], len(data) - 1), len(data) - 1
    chosen = retrieve.choose(rows, t, 6)
    u, c = retrieve.unit[data.item_code[rows]], retrieve.unit[data.item_code[t]]
    for n in range(6):
        value = 0.3 * u @ c - 0.7 * (np.max(u @ u[chosen[:n]].T, axis=1) if n else 0)
        value[chosen[:n]] = -np.inf
        assert chosen[n] == value.argmax()
    nearest = setting("diversity", trade=1.0)[2].choose(rows, t, 6)
    assert set(nearest) == set(np.argsort(-(u @ c))[:6])


def test_only_the_latest_are_searched():
    data, _, retrieve = setting("attention", pool=12)
    got = retrieve(examples(data, np.arange(len(data))))
    for t, h in zip(got.target, got.history, strict=True):
        past = np.arange(data.first[data.user_code[t]], t)
        past = past[~retrieve.deleted[past]][-12:]
        assert set(h[h >= 0]) <= set(past)


def test_the_weights_are_the_original_s_and_the_request_is_the_task_s():
    task = made_task("lora")
    out = cragru(task, CragruConfig())
    assert out.n_trainable == 0
    np.testing.assert_array_equal(out.details["rebuild"].deleted, task.deleted)
    assert set(task.forget.target) <= set(np.flatnonzero(task.deleted))
    vectors = title_vectors(task)
    table = task.original.model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(vectors[3], table[task.encoder.title(3)].mean(0), atol=1e-6)
