"""NDCG and hit rate of one positive among negatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from curerec.errors import ConfigError
from curerec.evaluation.ranking import hit_rate, lists, ndcg
from made_scene import made_scene


def test_equals_scikit_learn():
    scores = np.random.default_rng(0).normal(size=(40, 100))
    relevant = np.zeros_like(scores)
    relevant[:, 0] = 1
    assert ndcg(scores) == pytest.approx(ndcg_score(relevant, scores, k=10), abs=1e-12)
    rank = (scores > scores[:, :1]).sum(1) + 1
    assert hit_rate(scores) == pytest.approx((rank <= 10).mean())


@pytest.mark.parametrize(("better", "gain"), [(0, 1.0), (1, 1 / np.log2(3)), (9, 1 / np.log2(11)), (10, 0.0)])
def test_by_hand(better, gain):
    scores = np.zeros((1, 100))
    scores[0, 1 : better + 1] = 2.0
    scores[0, 0] = 1.0
    assert ndcg(scores) == pytest.approx(gain)
    assert hit_rate(scores) == (gain > 0)


def test_ties_count_as_chance():
    rng = np.random.default_rng(1)
    scores = np.array([[1.0, 2.0, 1.0, 1.0, 0.0]])
    broken = np.repeat(scores, 4000, 0) + rng.uniform(0, 0.1, (4000, 5))
    assert ndcg(scores, k=3) == pytest.approx(ndcg(broken, k=3), abs=0.02)
    assert hit_rate(scores, k=3) == pytest.approx(2 / 3)


def test_a_list_longer_than_the_items_holds_all():
    assert hit_rate(np.array([[0.0, 1.0, 2.0]]), k=10) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "scores", [np.zeros((0, 100)), np.zeros((3, 1)), np.zeros(3), np.full((1, 3), np.nan)]
)
def test_bad_input_is_named(scores):
    with pytest.raises(ConfigError, match="scores"):
        ndcg(scores)


def test_one_list_a_user_whatever_the_order_of_the_split():
    """Splits by time across users hold their test examples interleaved."""
    ground = made_scene().ground
    ground.rank_users = 10**9
    split = ground.split
    mixed = split.test.take(np.random.default_rng(0).permutation(len(split.test)))
    liked = split.test.target[split.test.label == 1]
    users = len(np.unique(ground.data.user_code[liked]))
    asked = lists(ground, negatives=3)
    ground.split = replace(split, test=mixed)
    again = lists(ground, negatives=3)
    assert len(asked.candidate) == len(again.candidate) == users * 4
    np.testing.assert_array_equal(asked.candidate[::4], again.candidate[::4])
