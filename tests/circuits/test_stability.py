"""Stability: intervals that cover, overlaps that can be counted, and the fall-back that says what it did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from curerec.circuits import core as core_module
from curerec.circuits.core import find_core, stable_core
from curerec.circuits.passes import Scores
from curerec.circuits.scorers import atp
from curerec.circuits.selection import halves
from curerec.circuits.stability import (
    agreement,
    beyond_chance,
    bootstrap_intervals,
    chance_jaccard,
    jaccard,
    overlaps,
    settle,
)
from curerec.errors import ConfigError
from made_core import found_circuit
from made_models import falling, made_model, made_prompts, other_titles

CLEAN, ENCODER = made_prompts(8)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
MODEL = made_model(WORDS)
CLEAN, CORRUPT = falling(MODEL, CLEAN, other_titles(CLEAN, WORDS), ANSWERS)


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(100, 400)) + np.linspace(-2, 2, 400)
    low, high = bootstrap_intervals(scores, draws=400)
    truth = np.linspace(-2, 2, 400)
    assert 0.90 <= ((low <= truth) & (truth <= high)).mean() <= 0.98
    assert low.dtype == np.float32 and (low <= scores.mean(0)).all() and (scores.mean(0) <= high).all()
    np.testing.assert_allclose(high - low, 2 * 1.96 / 10, atol=0.12)


def test_overlaps_of_named_circuits():
    def of(*core):
        return found_circuit(core=core)

    found = overlaps({"seed 1": of(0, 1), "seed 2": of(1, 0), "atp": of(1, 2)})
    assert found.names == ("seed 1", "seed 2", "atp")
    np.testing.assert_allclose(found.matrix, [[1, 1, 1 / 3], [1, 1, 1 / 3], [1 / 3, 1 / 3, 1]])
    assert found.mean == pytest.approx((1 + 2 / 3) / 3)
    assert found.least[2] == pytest.approx(1 / 3) and "atp" in found.least
    for few in ({"one": of(0)}, {}):  # nothing was compared
        assert np.isnan(overlaps(few).mean) and overlaps(few).names == tuple(few)
    assert jaccard((), ("a",)) == 0.0


def test_agreement_by_hand():
    truth = np.array([5.0, -4, 3, -2, 1, 0])
    assert agreement(2 * truth, truth) == pytest.approx(
        {"pearson": 1, "spearman": 1, "top_recall": 1, "modules": 6}
    )
    found = agreement(np.array([5.0, 0, 3, -2, 1, -4]), truth, top=2)
    assert found["top_recall"] == 0.5 and found["spearman"] < 1
    assert np.isnan(agreement(np.zeros(6), truth)["spearman"]) and np.isnan(
        agreement(truth[:2], truth[:2])["pearson"]
    )


@pytest.mark.parametrize("total", [1, 5, 7])
def test_the_overlap_of_chance_is_the_mean_over_all_pairs_of_sets(total):
    from itertools import combinations

    for size in range(total + 1):
        sets = list(combinations("abcdefg"[:total], size))
        want = np.mean([jaccard(a, b) for a in sets for b in sets])
        assert chance_jaccard(total, size) == pytest.approx(want, abs=1e-12)
    assert chance_jaccard(10, 9) == pytest.approx(0.82)
    assert chance_jaccard(54, 50) == pytest.approx(0.86, abs=0.01)
    assert chance_jaccard(3628, 400) < 0.07


def test_what_lies_beyond_chance():
    assert beyond_chance(0.82, 0.82) == 0 and beyond_chance(1.0, 0.82) == pytest.approx(1)
    assert np.isnan(beyond_chance(1.0, 1.0)) and beyond_chance(0.7, float("nan")) == 0.7


def test_a_circuit_of_noise_does_not_pass_for_a_stable_one():
    """Nine of ten parts of a model whose parts do nothing overlap by .8 and more over resamples."""
    fine = []

    def find(pairs, granularity):
        rng = np.random.default_rng(pairs)
        noise = rng.normal(size=(pairs, 10 if granularity == "head_mlp" else 4))
        total, size = noise.shape[1], noise.shape[1] - 1
        overlap = core_module.bootstrap_jaccard(noise, size, draws=200, rng=rng)
        fine.append(overlap)
        return replace(found_circuit((0,), overlap), jaccard_chance=chance_jaccard(total, size))

    _, said = settle(find, 256, start=64)
    assert len(fine) == 4 and max(fine[:3]) > 0.8  # which was enough before
    assert any("too near the 0.82 of random circuits" in text for text in said)
    assert "not stable" in said[-1] and len(said) == 3


def test_a_circuit_of_everything_is_no_reason_to_look_further():
    asked = []

    def find(pairs, granularity):
        asked.append((pairs, granularity))
        return replace(found_circuit((0, 1, 2), 1.0), jaccard_chance=1.0)

    circuit, said = settle(find, 256, start=64)
    assert asked == [(64, "head_mlp")] and circuit.core == (0, 1, 2)
    assert "all there is to choose from" in said[0] and "says nothing" in said[0]


def test_the_overlap_of_chance_is_in_the_record():
    circuit = find_core(MODEL, CLEAN, CORRUPT, ANSWERS, threshold=0.5, draws=4)
    assert circuit.jaccard_chance == chance_jaccard(10, len(circuit.core))


class TestSettle:
    def run(self, overlap):
        """``overlap`` maps (pairs, granularity) to the overlap found there."""
        asked = []

        def find(pairs, granularity):
            asked.append((pairs, granularity))
            return found_circuit(jaccard=overlap(pairs, granularity))

        circuit, said = settle(find, 100, start=30)
        return asked, circuit.jaccard, said

    def test_stable_at_once(self):
        assert self.run(lambda *a: 0.8) == ([(30, "head_mlp")], 0.8, ())

    def test_more_pairs_help(self):
        asked, reached, said = self.run(lambda pairs, _: pairs / 100)
        assert asked == [(30, "head_mlp"), (60, "head_mlp"), (100, "head_mlp")] and reached == 1.0
        assert "0.30" in said[0] and "went on with 60" in said[0] and len(said) == 2

    def test_coarser_modules_help(self):
        asked, _, said = self.run(lambda _, granularity: 0.5 if granularity == "head_mlp" else 0.9)
        assert asked[-1] == (100, "block") and "one module" in said[-1]

    def test_nothing_helps(self):
        """Then the more stable one is handed back: coarse modules say less, and have to earn it."""
        asked, reached, said = self.run(lambda *a: 0.1)
        assert len(asked) == 4 and reached == 0.1 and "single modules, is not stable" in said[-1]
        _, reached, said = self.run(lambda _, granularity: 0.6 if granularity == "head_mlp" else 0.5)
        assert reached == 0.6 and "0.50 with all heads" in said[-1] and "single modules" in said[-1]
        _, reached, said = self.run(lambda _, granularity: 0.5 if granularity == "head_mlp" else 0.7)
        assert reached == 0.7 and "such modules, is not stable" in said[-1]


def test_the_fall_back_is_in_the_record(monkeypatch):
    monkeypatch.setattr(core_module, "bootstrap_jaccard", lambda *a, **k: 0.25)
    monkeypatch.setattr(core_module, "chance_jaccard", lambda *a: 0.1)
    circuit = stable_core(MODEL, CLEAN, CORRUPT, ANSWERS, start=4, draws=4)
    assert circuit.granularity == "head_mlp" and circuit.pairs["kept"] == len(CLEAN)
    assert [n for n in circuit.notes if "went on with 8" in n] and "not stable" in circuit.notes[-1]


def test_blocks_are_taken_whole():
    circuit = find_core(MODEL, CLEAN, CORRUPT, ANSWERS, granularity="block", threshold=0.5, draws=4)
    inside = {circuit.modules[k] for k in circuit.core}
    for layer in range(2):
        heads = {f"layers.{layer}.head.{h}" for h in range(4)}
        assert heads <= inside or not heads & inside
    assert [size for size, _ in circuit.curve] == sorted(size for size, _ in circuit.curve)
    assert len(circuit.curve) == 5 and circuit.curve[-1][0] == 10


def test_details_of_a_circuit():
    circuit = find_core(
        MODEL, CLEAN, CORRUPT, ANSWERS, scorer="atp_ig", options={"steps": 3}, draws=20, details=True
    )
    assert circuit.scorer == "atp_ig" and len(circuit.minimality) == len(circuit.core)
    assert set(circuit.knockouts) == {"random", "random_mean", "greedy"}
    assert (circuit.low <= circuit.scores.mean(0)).all() and (circuit.scores.mean(0) <= circuit.high).all()
    assert circuit.cost["forward_equivalents"] == 2 + 2 * 3
    assert (
        set(circuit.agreement) == {"pearson", "spearman", "top_recall", "modules"}
        and circuit.agreement["modules"] == 10
    )
    assert np.isfinite([circuit.cpr, circuit.cmd]).all()
    assert circuit.minimality[0] == pytest.approx(circuit.faithfulness - dropped(circuit), abs=1e-4)


def dropped(circuit):
    """Faithfulness of the core without its first module, judged anew."""
    from curerec.circuits.faithfulness import Faithfulness, judge_modules

    judge_half = np.random.default_rng([0, 41]).permutation(len(CLEAN))[len(CLEAN) // 2 :]
    judge = judge_modules(MODEL, CLEAN.take(judge_half), CORRUPT.take(judge_half), ANSWERS, circuit.modules)
    return float(Faithfulness(judge, len(circuit.modules)).of([circuit.core[1:]])[0])


def test_a_scorer_that_disagrees_with_exact_patching_does_not_rank(monkeypatch):
    """The exact scores take over, by themselves, and the record says so."""
    right = find_core(MODEL, CLEAN, CORRUPT, ANSWERS, scorer="exact", draws=4)
    assert right.agreement["spearman"] == pytest.approx(1) and not right.notes

    def wrong(*args, **kwargs):
        found = atp.score(*args, **kwargs)
        values = np.random.default_rng(5).normal(size=found.values.shape).astype(np.float32)
        return Scores(found.names, values, None, "wrong", found.cost)

    monkeypatch.setitem(core_module.SCORERS, "wrong", wrong)
    circuit = find_core(MODEL, CLEAN, CORRUPT, ANSWERS, scorer="wrong", draws=4)
    assert circuit.agreement["spearman"] < 0.8 and "the exact scores of 10 modules rank" in circuit.notes[0]
    assert circuit.core == right.core


def test_a_scorer_that_is_not_to_be_trusted_can_be_seen_as_it_is(monkeypatch):
    """To compare scorers: else the exact scores take the place of every doubtful one."""

    def noise(*args, **kwargs):
        found = atp.score(*args, **kwargs)
        values = np.random.default_rng(5).normal(size=found.values.shape).astype(np.float32)
        return Scores(found.names, values, None, "noise", found.cost)

    monkeypatch.setitem(core_module.SCORERS, "noise", noise)
    monkeypatch.setattr(core_module, "exact", None)
    circuit = find_core(MODEL, CLEAN, CORRUPT, ANSWERS, scorer="noise", trust=False, draws=4)
    half = halves(len(CLEAN), 0)[0][: len(CLEAN) // 2]
    own = np.argsort(-np.abs(circuit.scores[half].mean(0)), kind="stable")
    assert circuit.order == tuple(own) and circuit.agreement == {} and np.isnan(circuit.exact).all()


@pytest.mark.parametrize("blind", [".mlp", ".head."])
def test_a_scorer_that_is_blind_to_one_kind_is_found_out(blind, monkeypatch):
    """A large model of which only 30 parts of 330 are MLPs: of 20 random parts two would be. Both kinds are
    drawn, and judged apart: over all of them together the rank correlation is good all the same."""
    names = tuple(
        n for k in range(30) for n in (*(f"layers.{k}.head.{h}" for h in range(10)), f"layers.{k}.mlp")
    )
    rng = np.random.default_rng(3)
    truth = rng.normal(size=len(names)) * np.where([".mlp" in n for n in names], 0.7, 1.0)
    guess = np.where([blind in n for n in names], 1e-3 * rng.normal(size=len(names)), truth)

    def exactly(model, clean, corrupt, answers, modules, **how):
        return np.tile([truth[names.index(m)] for m in modules], (4, 1)).astype(np.float32)

    monkeypatch.setattr(core_module, "exact", exactly)
    values = np.tile(guess, (8, 1)).astype(np.float32)
    found = Scores(names, values, None, "blind", atp.score(MODEL, CLEAN, CORRUPT, ANSWERS).cost)
    rows = np.arange(4)
    basis, mean, agree, notes = core_module._trusted(
        found, MODEL, CLEAN.take(rows), CORRUPT.take(rows), ANSWERS, rows, np.random.default_rng(0), 8, True
    )
    sampled = {n for n, v in zip(names, mean, strict=True) if np.isfinite(v)}
    assert sum(".mlp" in n for n in sampled) >= 20 and sum(".head." in n for n in sampled) >= 20
    assert len(sampled) <= 60 and len(basis) == 4
    kind, other = ("mlp", "head") if blind == ".mlp" else ("head", "mlp")
    assert agree[f"{kind}_spearman"] < 0.5 and agree[f"{other}_spearman"] == pytest.approx(1)
    word = {"mlp": "MLPs", "head": "heads"}[kind]
    assert f"of {word} by Spearman" in notes[0] and "rank them" in notes[0]


def test_few_modules_are_all_sampled_and_judged_together():
    circuit = find_core(MODEL, CLEAN, CORRUPT, ANSWERS, scorer="atp", draws=4)
    assert np.isfinite(circuit.exact).all()
    assert set(circuit.agreement) == {"pearson", "spearman", "top_recall", "modules"}


@pytest.mark.parametrize("select", ["top:3", "threshold:0.05", "top:99"])
def test_a_circuit_can_be_asked_for_by_size_or_score(select):
    circuit = find_core(MODEL, CLEAN, CORRUPT, ANSWERS, scorer="exact", select=select, draws=4)
    half = np.random.default_rng([0, 41]).permutation(len(CLEAN))[: len(CLEAN) // 2]
    means = np.abs(circuit.scores[half].mean(0))
    size = {"top:3": 3, "top:99": 10}.get(select, int((means >= 0.05).sum()))
    assert circuit.core == tuple(np.argsort(-means, kind="stable")[:size]) and size > 0
    assert dict(circuit.curve)[size] == circuit.faithfulness and len(circuit.order) == 10
    with pytest.raises(ConfigError, match=r"'most'.*top:K"):
        find_core(MODEL, CLEAN, CORRUPT, ANSWERS, select="most")


def test_an_unknown_scorer_is_refused():
    with pytest.raises(ConfigError, match=r"'magic'.*atp_ig"):
        find_core(MODEL, CLEAN, CORRUPT, ANSWERS, scorer="magic")


def test_cure_settles_where_it_is_told_to(monkeypatch):
    from curerec.methods.cure.method import CureConfig, circuit_of
    from made_tasks import made_task

    monkeypatch.setattr(core_module, "bootstrap_jaccard", lambda *a, **k: 0.25)
    monkeypatch.setattr(core_module, "chance_jaccard", lambda *a: 0.1)
    task = made_task()
    plain = circuit_of(task, CureConfig(pairs=8, pair_pool=40))
    settled = circuit_of(task, CureConfig(pairs=8, pair_pool=40, stable=True))
    assert plain.granularity == "head_mlp" and not any("not stable" in n for n in plain.notes)
    assert settled.granularity == "head_mlp" and "not stable" in settled.notes[-1]


def test_the_default_scorer_is_the_one_the_rule_takes():
    """By the committed rows of benchmarks/quality/scorers."""
    import json
    from pathlib import Path

    from curerec.circuits import DEFAULT, SCORERS
    from curerec.circuits.choice import cheapest_trusted

    path = Path(__file__).resolve().parents[2] / "benchmarks/quality/scorers/results.jsonl"
    if not path.exists():
        pytest.skip("no rows are committed here")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [r for r in rows if r["scorer"] in SCORERS and r["corruption"] == "prompt"]
    assert cheapest_trusted(rows) == DEFAULT
