"""The core circuit: faithful by definition at both ends, and found where it was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits import SCORERS
from curerec.circuits import core as core_module
from curerec.circuits.core import bootstrap_jaccard, faithfulness, find_core, ranking
from curerec.circuits.patching import patched_margins
from curerec.circuits.selection import halves
from curerec.circuits.stability import bootstrap_means
from curerec.errors import PromptError
from made_models import falling, made_model, made_prompts, other_titles

CLEAN, ENCODER = made_prompts(7)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CLEAN, CORRUPT = falling(made_model(WORDS), CLEAN, other_titles(CLEAN, WORDS), ANSWERS)
PLANTED = {"layers.0.head.2", "layers.0.mlp", "layers.1.head.1", "layers.1.mlp"}


def planted():
    """A model in which nothing but :data:`PLANTED` writes to the residual stream."""
    model = made_model(WORDS)
    with torch.no_grad():
        for k, layer in enumerate(model.model.layers):
            for h in range(4):
                if f"layers.{k}.head.{h}" not in PLANTED:
                    layer.self_attn.o_proj.weight[:, 4 * h : 4 * h + 4] = 0
    return model


def test_the_full_model_is_faithful_and_nothing_is_not():
    circuit = find_core(made_model(WORDS), CLEAN, CORRUPT, ANSWERS, draws=20)
    sizes, curve = zip(*circuit.curve, strict=True)
    assert sizes == tuple(range(len(circuit.modules) + 1))
    assert curve[0] == pytest.approx(0, abs=1e-5) and curve[-1] == pytest.approx(1, abs=1e-5)
    assert circuit.faithfulness >= 0.9
    assert all(f < 0.9 for f in curve[: len(circuit.core)])  # the smallest prefix that is
    assert circuit.scores.shape == (len(CLEAN), len(circuit.modules))
    assert circuit.pairs["kept"] == len(CLEAN) and circuit.pairs["judged"] == 4


def test_the_numbers_of_a_circuit_can_be_had_again_by_hand():
    model = made_model(WORDS)
    circuit = find_core(model, CLEAN, CORRUPT, ANSWERS, draws=20, seed=3, threshold=0.5)
    order = np.random.default_rng([3, 41]).permutation(len(CLEAN))
    judge = order[len(CLEAN) // 2 :]
    inside = {circuit.modules[k] for k in circuit.core}
    outside = set(circuit.modules) - inside
    clean, corrupt = CLEAN.take(judge), CORRUPT.take(judge)
    full, empty, kept, lost = patched_margins(
        model, clean, corrupt, ANSWERS, [set(), set(circuit.modules), outside, inside]
    ).mean(1)
    assert circuit.faithfulness == pytest.approx((kept - empty) / (full - empty), abs=1e-4)
    assert circuit.completeness == pytest.approx(1 - (lost - empty) / (full - empty), abs=1e-4)
    rank = np.argsort(-np.abs(circuit.scores[order[: len(CLEAN) // 2]].mean(0)), kind="stable")
    assert circuit.core == tuple(rank[: len(circuit.core)])
    exact_known = np.flatnonzero(~np.isnan(circuit.exact))
    assert set(rank[:20]) <= set(exact_known)


@pytest.mark.parametrize("scorer", ["exact", "atp", "atp_ig", "relp"])
def test_a_planted_circuit_is_found(scorer):
    circuit = find_core(planted(), CLEAN, CORRUPT, ANSWERS, threshold=0.999, draws=20, scorer=scorer)
    assert {circuit.modules[k] for k in circuit.core} <= PLANTED
    # One part works against the others: without it the answer is the stronger.
    assert circuit.faithfulness >= 0.999
    assert dict(circuit.curve)[len(PLANTED)] == pytest.approx(1, abs=2e-3)
    dead = [k for k, name in enumerate(circuit.modules) if name not in PLANTED]
    np.testing.assert_allclose(circuit.scores[:, dead], 0, atol=1e-6)
    top = {circuit.modules[k] for k in ranking(circuit.scores)[: len(PLANTED)]}
    assert top == PLANTED


def test_the_seed_decides():
    model = planted()
    one, two = (find_core(model, CLEAN, CORRUPT, ANSWERS, draws=20, seed=s) for s in (5, 5))
    assert one.core == two.core and one.curve == two.curve and one.jaccard == two.jaccard


def test_scores_at_hand_are_not_taken_again(monkeypatch):
    model = made_model(WORDS)
    asked = find_core(model, CLEAN, CORRUPT, ANSWERS, scorer="atp", draws=4)
    found = SCORERS["atp"](model, CLEAN, CORRUPT, ANSWERS)
    monkeypatch.setitem(SCORERS, "atp", None)
    given = find_core(model, CLEAN, CORRUPT, ANSWERS, scorer="atp", draws=4, found=found)
    assert given.core == asked.core and given.jaccard == asked.jaccard
    np.testing.assert_array_equal(given.scores, asked.scores)


@pytest.mark.parametrize("judged", [None, 3, 64])
@pytest.mark.parametrize("n", [2, 7, 300])
def test_every_pair_ranks_or_judges(n, judged):
    rank, judge = halves(n, 5, judged=judged)
    assert sorted([*rank, *judge]) == list(range(n))
    assert len(judge) == min(n - n // 2, judged or n) and len(rank) >= n // 2
    whole = halves(n, 5)[1]
    assert set(judge) <= set(whole)


def test_pairs_that_move_nothing_and_too_few_pairs_are_refused():
    with pytest.raises(PromptError, match="moved the answer"):
        find_core(planted(), CLEAN, CLEAN, ANSWERS)
    with pytest.raises(PromptError, match="two pairs"):
        find_core(planted(), CLEAN.take([0]), CORRUPT.take([0]), ANSWERS)


def test_faithfulness_of_many_circuits_at_once():
    full, empty = np.asarray([2.0, 4.0]), np.asarray([1.0, 1.0])
    kept = np.stack([empty, full, (full + empty) / 2, 2 * full - empty])
    np.testing.assert_allclose(faithfulness(full, empty, kept, axis=0), [0, 1, 0.5, 2])
    assert faithfulness(full, empty, full) == 1.0


@pytest.mark.parametrize("size", [0, 1, 3, 8])
def test_the_overlap_of_resamples(size):
    rng = np.random.default_rng(0)
    sure = np.arange(1, 9) + 0.01 * rng.normal(size=(40, 8))
    assert bootstrap_jaccard(sure, size, draws=50, rng=rng) == 1.0
    if 0 < size < 8:
        noise = rng.normal(size=(40, 8))
        assert 0 < bootstrap_jaccard(noise, size, draws=200, rng=rng) < 0.9


def test_the_overlap_of_a_circuit_chosen_by_a_threshold():
    """The pairs differ in how much they move all parts at once: the order stands, how many are chosen not."""
    rng = np.random.default_rng(1)
    scores = rng.exponential(size=(32, 1)) * -np.linspace(1.0, 0.1, 10)
    size = int((np.abs(scores.mean(0)) >= 0.35).sum())

    def overlap(threshold):
        rng = np.random.default_rng(0)
        return bootstrap_jaccard(scores, size, draws=200, rng=rng, threshold=threshold)

    means = np.abs(bootstrap_means(scores, draws=200, rng=np.random.default_rng(0))) >= 0.35
    want = np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(means[::2], means[1::2], strict=True)])
    assert overlap(None) == 1.0 and overlap(0.35) == pytest.approx(want) and want < 0.95


@pytest.mark.parametrize(("select", "threshold"), [("threshold:0.05", 0.05), ("top:3", None)])
def test_resamples_choose_as_the_circuit_was_chosen(select, threshold, monkeypatch):
    asked = []
    plain = core_module.bootstrap_jaccard
    monkeypatch.setattr(core_module, "bootstrap_jaccard", lambda *a, **k: asked.append(k) or plain(*a, **k))
    find_core(made_model(WORDS), CLEAN, CORRUPT, ANSWERS, select=select, draws=4, trust=False)
    assert [k["threshold"] for k in asked] == [threshold]


def test_other_corruptions_give_other_scores():
    model = planted()
    pairs = [falling(model, CLEAN, other_titles(CLEAN, WORDS, seed=s), ANSWERS) for s in (0, 9)]
    one, two = (find_core(model, *pair, ANSWERS, draws=4) for pair in pairs)
    assert not np.allclose(one.scores, two.scores)
