"""The report counts what can be counted by hand."""

from __future__ import annotations

import numpy as np

from curerec.circuits.counterfactuals import counterfactual_report
from curerec.data.splits import per_user_split
from curerec.prompts.counterfactual import Pairs, counterfactual_pairs
from curerec.prompts.encoding import Queries, queries
from curerec.recommender.score import score
from made_catalogue import made_catalogue
from made_models import made_encoder, made_model

DATA = made_catalogue(60, 60, (15, 40))
SPLIT = per_user_split(DATA)
ROWS = SPLIT.train.target
ENCODER = made_encoder()
QUERIES = queries(DATA, SPLIT.valid.take(np.arange(30)))
MODEL = made_model(len(ENCODER.tokenizer))


def test_the_counts_against_answers_taken_apart():
    pairs = counterfactual_pairs(DATA, QUERIES, ENCODER, ROWS, deciles=3, candidates=4)
    report = counterfactual_report(MODEL, pairs, ENCODER, DATA, ROWS, deciles=3)
    assert report.asked == len(QUERIES) and report.made == report.aligned == len(pairs)
    assert report.unaligned == report.asked - report.made and report.same_decile == 1.0
    assert report.replaced == pairs.replaced.sum()
    z = [score(MODEL, ENCODER.encode(q), ENCODER.answers) for q in (pairs.clean, pairs.corrupt)]
    clean, corrupt = ((2.0 * pairs.clean.label - 1) * (x[:, 1] - x[:, 0]) for x in z)
    assert report.moved == (np.abs(clean - corrupt) > 1e-3).sum() > 0
    assert report.fell == (clean - corrupt > 1e-3).sum()
    assert report.flipped == ((clean > 0) != (corrupt > 0)).sum()
    assert abs(report.mean_fall - (clean - corrupt).mean()) < 1e-4
    assert set(report.counts()) == {
        "asked", "unaligned", "made", "aligned", "replaced", "moved", "fell", "flipped"
    }  # fmt: skip


def test_replacements_of_other_popularity_and_length_are_seen():
    popular = np.bincount(DATA.item_code[ROWS], minlength=len(DATA.items)).argsort(kind="stable")
    lengths = np.asarray([len(ENCODER.title(k)) for k in range(len(DATA.items))])
    history = QUERIES.history.copy()
    rare, frequent = popular[:30], popular[30:]
    for n, k in zip(*np.nonzero(history >= 0), strict=True):
        old = history[n, k]
        pool = frequent if old in rare else rare
        longer = (
            pool[lengths[pool] != lengths[old]] if n % 2 and k == 9 else pool[lengths[pool] == lengths[old]]
        )
        history[n, k] = longer[0]
    bad = Queries(history, QUERIES.rating, QUERIES.candidate, QUERIES.label)
    pairs = Pairs(QUERIES, bad, 0, (history != QUERIES.history).sum(1), np.arange(len(QUERIES)))
    report = counterfactual_report(MODEL, pairs, ENCODER, DATA, ROWS, deciles=2)
    assert report.same_decile == 0.0 and report.aligned == len(QUERIES) // 2 < report.made
