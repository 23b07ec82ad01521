"""Counts of pairs against answers that were asked for one by one."""

from __future__ import annotations

import numpy as np

from curerec.circuits.activations import sites_of
from curerec.circuits.counterfactuals import outcomes
from curerec.circuits.patching import patched_margins
from curerec.data.splits import per_user_split
from curerec.prompts.counterfactual import counterfactual_pairs
from curerec.prompts.encoding import queries
from curerec.recommender.score import score
from made_catalogue import made_catalogue
from made_models import made_encoder, made_model

DATA = made_catalogue(60, 60, (15, 40))
SPLIT = per_user_split(DATA)
ENCODER = made_encoder()
QUERIES = queries(DATA, SPLIT.valid.take(np.arange(30)))
MODEL = made_model(len(ENCODER.tokenizer))


def test_the_counts_against_answers_taken_apart():
    pairs = counterfactual_pairs(DATA, QUERIES, ENCODER, SPLIT.train.target, deciles=3, candidates=4)
    clean, corrupt = ENCODER.encode(pairs.clean), ENCODER.encode(pairs.corrupt)
    everything = set(sites_of(MODEL).names)
    found = outcomes(*patched_margins(MODEL, clean, corrupt, ENCODER.answers, [set(), everything]))
    z = [score(MODEL, prompts, ENCODER.answers) for prompts in (clean, corrupt)]
    one, other = ((2.0 * pairs.clean.label - 1) * (x[:, 1] - x[:, 0]) for x in z)
    assert found["moved"] == (np.abs(one - other) > 1e-3).sum() > 0
    assert 0 < found["fell"] == (one > other).sum() < len(pairs)
    assert found["flipped"] == ((one > 0) != (other > 0)).sum()
