"""Some of the deleted left as they were: seen however few, and seldom where nobody was."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from curerec.data.table import interactions
from curerec.errors import ConfigError
from curerec.evaluation.untouched import LEAST_CONTROL, TOL, deleted_entities, untouched

PEOPLE = 55


def sizes(rng):
    """Ratings a person, as uneven as they are."""
    return np.repeat(np.arange(PEOPLE), rng.geometric(0.1, PEOPLE))


def moves(rng, n):
    return np.zeros(n), rng.standard_t(4, n)


def told(rng, person, after, control=None):
    return untouched((np.zeros(len(person)), after), control or moves(rng, 2000), person)


def test_where_nobody_was_left_chance_alone_refuses():
    shares, refused = [], 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        person = sizes(rng)
        found = told(rng, person, rng.standard_t(4, len(person)))
        shares.append(found["share"])
        refused += found["share"] > found["limit"]
    assert np.mean(shares) == pytest.approx(0.025, abs=0.006)
    assert refused <= 12  # 2.5 % of 200 are 5


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_people_left_as_they_were_are_seen_however_many_ratings_they_have(share):
    for seed in range(50):
        rng = np.random.default_rng(seed)
        person = sizes(rng)
        left = rng.permutation(PEOPLE)[: round(share * PEOPLE)]
        after = np.where(np.isin(person, left), 0.0, 2 * rng.standard_t(4, len(person)))
        found = told(rng, person, after)
        assert found["share"] >= len(left) / PEOPLE
        assert found["share"] > found["limit"]


def test_a_filter_that_moves_unseen_data_not_at_all_is_held_to_the_same():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(10), 5)
    still = np.zeros(100), np.full(100, TOL / 2)  # another batch size moves so much
    found = told(rng, person, np.where(person < 3, TOL / 2, 1.0), still)
    assert found["share"] == pytest.approx(0.3) and found["share"] > found["limit"]
    assert told(rng, person, np.ones(50), still)["share"] == 0


def test_it_does_not_hang_on_a_constant_that_all_answers_moved_by_or_on_units():
    rng = np.random.default_rng(1)
    person, control = sizes(rng), moves(rng, 500)
    after = rng.standard_t(4, len(person))
    plain = untouched((np.zeros(len(person)), after), control, person)
    as_logits = [np.stack([np.zeros_like(z), z], 1) for z in (np.zeros(len(person)), after)]
    assert untouched(tuple(as_logits), control, person) == plain
    scaled = untouched((np.zeros(len(person)), 3 * after), (control[0], 3 * control[1]), person)
    assert scaled["share"] == plain["share"]


@pytest.mark.parametrize(("n", "allowed"), [(1, 0), (2, 1), (3, 1), (10, 1), (55, 4), (700, 26)])
def test_what_chance_allows(n, allowed):
    rng = np.random.default_rng(0)
    found = told(rng, np.arange(n), np.ones(n))
    assert found["n"] == n and found["limit"] == pytest.approx(allowed / n)


def test_too_little_to_hold_it_against_is_not_judged():
    rng = np.random.default_rng(0)
    found = told(rng, np.arange(5), np.zeros(5), moves(rng, LEAST_CONTROL - 1))
    assert np.isnan(found["share"]) and np.isnan(found["limit"])
    assert np.isnan(untouched((np.zeros(0), np.zeros(0)), moves(rng, 100), np.zeros(0))["share"])
    assert told(rng, np.arange(5), np.zeros(5), moves(rng, LEAST_CONTROL))["share"] == 1


def test_rows_that_do_not_belong_together_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="entities"):
        untouched((np.zeros(3), np.ones(3)), moves(rng, 50), np.arange(4))
    with pytest.raises(ConfigError, match="before and after"):
        untouched((np.zeros(3), np.ones(4)), moves(rng, 50), np.arange(4))


def test_what_was_deleted_is_a_user_else_an_item_else_a_rating():
    users = ["a", "a", "b", "b", "c", "c"]
    items = ["x", "y", "x", "z", "y", "z"]
    titles = {k: k.upper() for k in "xyz"}
    data = interactions(users, items, [5.0] * 6, list(range(6)), titles, name="made", source="test")

    def entities(*rows):
        deleted = np.zeros(6, bool)
        deleted[list(rows)] = True
        split = SimpleNamespace(forget=SimpleNamespace(target=np.array(rows)), deleted=deleted)
        return deleted_entities(data, split).tolist()

    a = entities(0, 1)
    assert a[0] == a[1] == 0  # user a
    x = entities(0, 2)
    assert x[0] == x[1] >= 3  # item x
    alone = entities(0, 3)
    assert len(set(alone)) == 2 and min(alone) >= 6
    both = entities(0, 1, 2)  # all of a, and with it all of x
    assert both[:2] == [0, 0] and both[2] not in (0, 1, 2)
