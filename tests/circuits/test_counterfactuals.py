"""Counts of pairs against answers that were asked for one by one."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from curerec.circuits.activations import sites_of
from curerec.circuits.counterfactuals import outcomes
from curerec.circuits.patching import moving_pairs, patched_margins
from curerec.data.splits import per_user_split
from curerec.methods.cure import method as cure_method
from curerec.methods.cure.method import CureConfig, circuit_of
from curerec.prompts.counterfactual import counterfactual_pairs
from curerec.prompts.encoding import queries
from curerec.recommender.score import score
from made_catalogue import made_catalogue
from made_models import made_encoder, made_model
from made_tasks import made_task

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


@pytest.mark.parametrize("stable", [False, True])
def test_a_request_counts_what_became_of_all_pairs_that_were_made(stable, monkeypatch):
    """Those used were chosen for their fall, and half of them judges: neither says how pairs turned out."""
    asked = []
    plain = cure_method.both_margins

    def noting(model, clean, corrupt, answers, **how):
        asked.append((partial(moving_pairs, model, clean, corrupt, answers, **how), plain(
            model, clean, corrupt, answers, **how)))  # fmt: skip
        return asked[-1][1]

    monkeypatch.setattr(cure_method, "both_margins", noting)
    circuit = circuit_of(made_task(), CureConfig(pairs=8, pair_pool=40, stable=stable))
    ((chosen, (full, empty)),) = asked
    made = circuit.pairs["made"]
    assert len(full) == made > circuit.pairs["kept"] == len(chosen(8)) == 8
    assert {k: circuit.pairs[k] for k in ("moved", "fell", "flipped")} == outcomes(full, empty)
    assert circuit.pairs["moved"] > circuit.pairs["judged"] == 4
