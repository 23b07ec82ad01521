"""Some of the deleted left as they were: seen however few, and seldom where nobody was."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from curerec.data.table import interactions
from curerec.errors import ConfigError
from curerec.evaluation.left_alone import LEAST_GROUPS, TAIL, TOL, Deleted, deleted_entities, left_alone

PEOPLE = 55


def sizes(rng, n=PEOPLE):
    """Ratings a person, as uneven as they are."""
    return np.repeat(np.arange(n), rng.geometric(0.1, n))


def moves(rng, person, spread=0.0):
    """Before and after; people may be moved by more or by less as a whole."""
    scale = np.exp(spread * rng.normal(size=person.max() + 1))[person]
    return np.zeros(len(person)), scale * rng.standard_t(4, len(person))


def told(rng, person, after, *, spread=0.0, draws=20):
    others = sizes(rng, 300)
    people = [Deleted(np.arange(len(person)), person, others)]
    return left_alone((np.zeros(len(person)), after), moves(rng, others, spread), people, draws=draws)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_where_nobody_was_left_chance_alone_refuses(spread):
    """Also where some people's answers move by less than others': people are compared with people."""
    shares, refused = [], 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        person = sizes(rng)
        found = told(rng, person, moves(rng, person, spread)[1], spread=spread, draws=5)
        shares.append(found["share"])
        refused += found["share"] > found["limit"]
    assert np.mean(shares) == pytest.approx(0.025, abs=0.008)
    assert refused <= 14  # 2.5 % of 200 are 5; 300 people of D_c are a sample, too


@pytest.mark.parametrize(("deleted", "each", "groups"), [(300, 9, 100), (2000, 1, 1000)])
def test_a_fortieth_of_few_groups_is_known_no_better_than_they_tell(deleted, each, groups):
    """A binomial limit, of a fortieth that is taken for known, refuses too many of these."""
    refused = by_binomial = 0
    known = binom.ppf(1 - TAIL, deleted, TAIL) / deleted
    for seed in range(100):
        rng = np.random.default_rng(seed)
        person, others = np.repeat(np.arange(deleted), each), np.repeat(np.arange(groups), each)
        people = [Deleted(np.arange(len(person)), person, others)]
        found = left_alone(moves(rng, person), moves(rng, others), people, draws=2)
        refused += found["share"] > found["limit"]
        by_binomial += found["share"] > known
    assert refused <= 7 and found["limit"] < 0.1
    assert by_binomial > refused


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
    person = np.repeat(np.arange(10), 5)
    people = [Deleted(np.arange(50), person, np.arange(300) // 3)]
    still = np.zeros(300), np.full(300, TOL / 2)  # another batch size moves so much
    left = np.where(person < 3, TOL / 2, 1.0)
    found = left_alone((np.zeros(50), left), still, people)
    assert found["share"] == pytest.approx(0.3) and found["share"] > found["limit"]
    assert left_alone((np.zeros(50), np.ones(50)), still, people)["share"] == 0


def test_it_does_not_hang_on_the_unit_of_the_answers_or_on_how_they_are_given():
    rng = np.random.default_rng(1)
    person = sizes(rng)
    after, others = rng.standard_t(4, len(person)), sizes(rng, 200)
    control = moves(rng, others)
    people = [Deleted(np.arange(len(person)), person, others)]
    plain = left_alone((np.zeros(len(person)), after), control, people)
    as_logits = tuple(np.stack([np.zeros_like(z), z], 1) for z in (np.zeros(len(person)), after))
    assert left_alone(as_logits, control, people) == plain
    scaled = left_alone((np.zeros(len(person)), 3 * after), (control[0], 3 * control[1]), people)
    assert scaled["share"] == plain["share"]


@pytest.mark.parametrize(("n", "allowed"), [(1, 0), (2, 1), (3, 1), (10, 1), (55, 4), (700, 33)])
def test_what_chance_allows(n, allowed):
    rng = np.random.default_rng(0)
    found = told(rng, np.arange(n), np.ones(n))
    assert found["n"] == n and found["limit"] == pytest.approx(allowed / n)


def test_kinds_are_compared_with_their_like_and_counted_together():
    """A user, and ten ratings of others, of which none moved but the user's."""
    rng = np.random.default_rng(0)
    after = np.r_[np.ones(5), np.zeros(10)]
    kinds = [
        Deleted(np.arange(5), np.zeros(5, int), np.arange(400) // 4),
        Deleted(np.arange(5, 15), np.arange(10), np.arange(400)),
    ]
    found = left_alone((np.zeros(15), after), (np.zeros(400), rng.normal(size=400)), kinds)
    assert found["n"] == 11 and found["share"] == pytest.approx(10 / 11)


def test_those_of_d_c_who_are_deleted_themselves_are_no_yardstick():
    """They were left as they were, too: with them what is left would look like chance."""
    rng = np.random.default_rng(0)
    group = np.arange(400) // 4
    after = rng.normal(size=400)
    after[group < 20] = 0
    out = np.where(group < 20, -1, group)
    forget = np.zeros(100), np.r_[np.full(50, 0.3), np.full(50, 1.0)]
    shares = [
        left_alone(forget, (np.zeros(400), after), [Deleted(np.arange(100), np.arange(100) // 5, side)])[
            "share"
        ]
        for side in (group, out)
    ]
    assert shares[0] == 0 and shares[1] == 0.5


def test_too_little_to_hold_it_against_is_not_judged():
    forget = np.zeros(5), np.zeros(5)

    def share(groups):
        control = np.zeros(2 * groups), np.random.default_rng(0).normal(size=2 * groups)
        return left_alone(forget, control, [Deleted(np.arange(5), np.arange(5), np.arange(2 * groups) // 2)])

    found = share(LEAST_GROUPS - 1)
    assert np.isnan(found["share"]) and np.isnan(found["limit"]) and found["n"] == 5
    assert share(LEAST_GROUPS)["share"] == 1
    assert np.isnan(left_alone((np.zeros(0), np.zeros(0)), (np.zeros(9), np.ones(9)), [])["share"])


def test_rows_that_do_not_belong_together_are_refused():
    people = [Deleted(np.arange(3), np.arange(3), np.arange(50))]
    control = np.zeros(50), np.ones(50)
    with pytest.raises(ConfigError, match="before and after"):
        left_alone((np.zeros(3), np.ones(4)), control, people)
    with pytest.raises(ConfigError, match="groups"):
        left_alone((np.zeros(3), np.ones(3)), (np.zeros(60), np.ones(60)), people)


def test_what_was_deleted_is_a_user_else_an_item_else_a_rating():
    users = ["a", "a", "b", "b", "c", "c"]
    items = ["x", "y", "x", "z", "y", "z"]
    titles = {k: k.upper() for k in "xyz"}
    data = interactions(users, items, [5.0] * 6, list(range(6)), titles, name="made", source="test")

    def entities(*rows, control=()):
        deleted = np.zeros(6, bool)
        deleted[list(rows)] = True
        parts = (SimpleNamespace(target=np.array(part, int)) for part in (rows, control))
        split = SimpleNamespace(**dict(zip(("forget", "control"), parts, strict=True)), deleted=deleted)
        return [
            (one.rows.tolist(), one.entity.tolist(), one.group.tolist())
            for one in deleted_entities(data, split)
        ]

    assert entities(0, 1, control=(1, 2, 4)) == [([0, 1], [0, 0], [-1, 1, 2])]  # user a; groups are users
    assert entities(0, 2, control=(3, 4)) == [([0, 1], [0, 0], [2, 1])]  # item x; groups are items
    assert entities(0, 3, control=(1, 2)) == [([0, 1], [0, 1], [0, 1])]  # single ratings
    both = entities(0, 1, 2)  # all of a, and with it all of x
    assert [kind[0] for kind in both] == [[0, 1], [2]]
