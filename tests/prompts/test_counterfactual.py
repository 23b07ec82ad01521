"""Counterfactual pairs: aligned, matched in popularity, and corrupted in the direction that is documented."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.data.graph import RESTART, liked_graph, personalised_pagerank
from curerec.data.splits import examples, per_user_split
from curerec.errors import PromptError
from curerec.prompts.counterfactual import counterfactual_pairs
from curerec.prompts.encoding import queries
from made_catalogue import made_catalogue
from made_models import made_encoder

DATA = made_catalogue(60, 60, (15, 40))
SPLIT = per_user_split(DATA)
ROWS = SPLIT.train.target
ENCODER = made_encoder()
QUERIES = queries(DATA, SPLIT.valid.take(np.arange(60)))
PAIRS = counterfactual_pairs(DATA, QUERIES, ENCODER, ROWS, deciles=3, candidates=4)
CHANGED = PAIRS.clean.history != PAIRS.corrupt.history


def nearness():
    """PageRank of every item from each pair's candidate, [pairs, items]."""
    starts = PAIRS.clean.candidate + len(DATA.users)
    return personalised_pagerank(liked_graph(DATA, ROWS), starts, n_users=len(DATA.users), tol=1e-10)[
        :, len(DATA.users) :
    ]


def test_only_liked_history_items_change():
    assert len(PAIRS) and len(PAIRS) + PAIRS.unaligned == len(QUERIES)
    np.testing.assert_array_equal(CHANGED.sum(1), PAIRS.replaced)
    assert (PAIRS.replaced >= 1).all() and (PAIRS.replaced <= 5).all()
    assert (PAIRS.clean.rating[CHANGED] >= 4).all()
    for name in ("rating", "candidate", "label"):
        np.testing.assert_array_equal(getattr(PAIRS.clean, name), getattr(PAIRS.corrupt, name))


def test_positions_align_and_nothing_but_those_titles_differs():
    clean, corrupt = ENCODER.encode(PAIRS.clean), ENCODER.encode(PAIRS.corrupt)
    np.testing.assert_array_equal(clean.lengths, corrupt.lengths)
    np.testing.assert_array_equal(clean.spans, corrupt.spans)
    may_differ = np.zeros(len(clean.ids), bool)
    for n, start, stop, position, _ in clean.spans:
        at = slice(clean.offsets[n] + start, clean.offsets[n] + stop)
        if position >= 0 and CHANGED[n, position]:
            may_differ[at] = True
            assert (clean.ids[at] != corrupt.ids[at]).any()
    np.testing.assert_array_equal(clean.ids[~may_differ], corrupt.ids[~may_differ])


def test_replacements_match_in_length_and_popularity_and_are_new_to_the_prompt():
    popularity = np.bincount(DATA.item_code[ROWS], minlength=len(DATA.items))
    decile = (popularity.argsort(kind="stable").argsort() * 3) // len(DATA.items)
    for n, k in zip(*np.nonzero(CHANGED), strict=True):
        old, new = PAIRS.clean.history[n, k], PAIRS.corrupt.history[n, k]
        assert len(ENCODER.title(old)) == len(ENCODER.title(new))
        assert decile[old] == decile[new] and popularity[new] > 0
        assert new not in PAIRS.clean.history[n] and new != PAIRS.clean.candidate[n]
    for row in PAIRS.corrupt.history:
        assert len(set(row[row >= 0])) == (row >= 0).sum()


def test_a_liked_candidate_loses_near_items_and_a_disliked_one_gains_them():
    near, label = nearness(), PAIRS.clean.label
    assert 0 < label.sum() < len(label)
    for n, k in zip(*np.nonzero(CHANGED), strict=True):
        rise = near[n, PAIRS.corrupt.history[n, k]] - near[n, PAIRS.clean.history[n, k]]
        assert rise < 0 if label[n] == 1 else rise > 0


def test_the_items_that_argue_most_for_the_label_go_first():
    one = counterfactual_pairs(DATA, QUERIES, ENCODER, ROWS, deciles=1, replace=1)
    starts = one.clean.candidate + len(DATA.users)
    near = personalised_pagerank(liked_graph(DATA, ROWS), starts, n_users=len(DATA.users), tol=1e-10)[
        :, len(DATA.users) :
    ]
    best = 0
    for n in range(len(one)):
        (k,) = np.flatnonzero(one.clean.history[n] != one.corrupt.history[n])
        liked = np.flatnonzero(one.clean.rating[n] >= 4)
        rank = near[n, one.clean.history[n, liked]] * (1 if one.clean.label[n] else -1)
        best += near[n, one.clean.history[n, k]] * (1 if one.clean.label[n] else -1) == rank.max()
    # `replace=1` looks at the best item alone: without a replacement for it the query is left out.
    assert best == len(one) and len(one) + one.unaligned == len(QUERIES)


def dense_pagerank(starts):
    """(1 - a)-walk with restart a as a linear system, solved directly: float64 [starts, nodes]."""
    walk = liked_graph(DATA, ROWS).toarray()
    n = len(walk)
    # What reaches a node without edges returns to the start: the row is scaled to sum to 1.
    rank = RESTART * np.linalg.solve(np.eye(n) - (1 - RESTART) * walk.T, np.eye(n)[:, starts]).T
    return rank / rank.sum(1, keepdims=True)


@pytest.mark.parametrize("start", ["item", "user"])
def test_near_is_by_pagerank_from_where_it_was_asked_to_start(start):
    """Against a dense solve: who goes is the most telling like, and what comes in is on the other side."""
    users = DATA.user_code[SPLIT.valid.target[:60]]
    one = counterfactual_pairs(DATA, QUERIES, ENCODER, ROWS, deciles=1, replace=1, start=start, users=users)
    nodes = {"item": one.clean.candidate + len(DATA.users), "user": users[one.index]}[start]
    near = dense_pagerank(nodes)[:, len(DATA.users) :]
    for n in range(len(one)):
        (k,) = np.flatnonzero(one.clean.history[n] != one.corrupt.history[n])
        liked = np.flatnonzero(one.clean.rating[n] >= 4)
        sign = 1 if one.clean.label[n] else -1
        rank = sign * near[n]
        assert rank[one.clean.history[n, k]] == pytest.approx(rank[one.clean.history[n, liked]].max())
        assert rank[one.corrupt.history[n, k]] < rank[one.clean.history[n, k]]
    assert len(one) > 20 and 0 < one.clean.label.sum() < len(one)


def test_the_user_and_the_candidate_lead_to_other_counterfactuals():
    users = DATA.user_code[SPLIT.valid.target[:60]]
    other = counterfactual_pairs(DATA, QUERIES, ENCODER, ROWS, deciles=3, start="user", users=users)
    same = [k for k in other.index if k in PAIRS.index]
    ours, theirs = ({k: p.corrupt.history[n].tolist() for n, k in enumerate(p.index)} for p in (PAIRS, other))
    assert any(ours[k] != theirs[k] for k in same)
    with pytest.raises(PromptError, match=r"needs the user.*user_code"):
        counterfactual_pairs(DATA, QUERIES, ENCODER, ROWS, start="user")


def test_the_seed_decides():
    def corrupt(seed):
        return counterfactual_pairs(DATA, QUERIES, ENCODER, ROWS, deciles=3, seed=seed).corrupt.history

    np.testing.assert_array_equal(corrupt(1), corrupt(1))
    assert (corrupt(1) != corrupt(2)).any()


def test_queries_are_left_as_they_were_and_empty_places_stay_empty():
    again = queries(DATA, SPLIT.valid.take(np.arange(60)))
    np.testing.assert_array_equal(QUERIES.history, again.history)
    np.testing.assert_array_equal(PAIRS.clean.history < 0, PAIRS.corrupt.history < 0)


def test_nothing_to_replace_is_refused():
    q = queries(DATA, examples(DATA, ROWS[:3], min_history=0))
    q.rating[:] = 1.0
    with pytest.raises(PromptError, match="no prompt has a replacement"):
        counterfactual_pairs(DATA, q, ENCODER, ROWS)
