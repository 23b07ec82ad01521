"""A model that runs out of memory above two prompts a pass: the same scores, and the record says so."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from curerec.circuits import SCORERS
from curerec.circuits.activations import sites_of
from curerec.circuits.core import find_core
from curerec.circuits.edge_core import find_edges
from curerec.circuits.exchange import shape_of, to_file
from curerec.circuits.faithfulness import judge_edges, judge_modules
from curerec.circuits.passes import Cost, each_part
from curerec.circuits.wiring import wiring_of
from curerec.errors import ModelError
from curerec.recommender import parallel
from made_models import made_model, made_prompts, other_titles, with_lora

CLEAN, ENCODER = made_prompts(6)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)
MODEL = with_lora(made_model(WORDS))


@contextmanager
def room_for(n, error=torch.OutOfMemoryError):
    """Memory for so many prompts a pass; what does not fit fails inside the second layer."""

    def full(module, args):
        if len(args[0]) > n:
            raise error("planted: DefaultCPUAllocator: can't allocate memory")

    handle = MODEL.get_base_model().model.layers[1].register_forward_pre_hook(full)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.slow_but("exact", "atp*", "relp", "adapter")
@pytest.mark.parametrize("name", SCORERS)
def test_the_batch_is_halved_and_the_scores_are_the_same(name):
    want = SCORERS[name](MODEL, CLEAN, CORRUPT, ANSWERS)
    with room_for(2):
        got = SCORERS[name](MODEL, CLEAN, CORRUPT, ANSWERS, batch_size=6)
    np.testing.assert_allclose(got.values, want.values, atol=1e-5)
    assert got.cost.halved >= 1 and got.cost.smallest_batch <= 2
    assert got.cost.forward_equivalents == want.cost.forward_equivalents
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in MODEL.modules())


@pytest.mark.slow
def test_the_record_says_so():
    with room_for(2):
        circuit = find_core(MODEL, CLEAN, CORRUPT, ANSWERS, draws=4, batch_size=6)
        edges = find_edges(MODEL, CLEAN, CORRUPT, ANSWERS, scorer="atp", draws=4, sizes=4, batch_size=6)
    file = to_file(circuit, shape_of(wiring_of(MODEL), 16))
    assert any("memory ran out" in note and "a pass" in note for note in file.notes)
    assert any("memory ran out" in note for note in edges.notes)


@pytest.mark.parametrize("of", [judge_modules, judge_edges])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_judges_say_so_and_keep_to_what_fitted(of, error):
    names = [sites_of(MODEL).names] if of is judge_modules else []
    pair = (MODEL, CLEAN, CORRUPT, ANSWERS, *names)
    sets = [range(5), ()]
    want, cost = of(*pair)(sets), Cost()
    judge = of(*pair, batch_size=6, cost=cost)
    with room_for(2, error):
        for calls in (1, 2):
            np.testing.assert_allclose(judge(sets), want, atol=1e-5)
            assert cost.smallest_batch <= 2 and cost.examples == len(CLEAN)
            assert cost.halved == 2  # 6, 3, 1: and the second call begins there
            assert cost.forward_equivalents == calls * 3
    (note,) = cost.notes(" while judging")
    assert note == "memory ran out 2 time(s) while judging; went on with 1 pairs a pass"


@pytest.mark.parametrize("name", ["atp", "adapter"])
def test_one_pair_too_many_is_an_error(name):
    with room_for(0), pytest.raises(ModelError, match="one p"):
        SCORERS[name](MODEL, CLEAN, CORRUPT, ANSWERS)


def test_a_batch_is_not_halved_where_all_processes_make_the_same_passes(monkeypatch):
    """Half a batch here would be passes that the others, which had room, never come to: all would wait."""
    monkeypatch.setattr(parallel, "in_step", lambda: True)
    calls = []

    def work(index):
        calls.append(len(index))
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(ModelError, match="same passes"):
        each_part(MODEL, CLEAN, 6, work)
    assert calls == [6]
