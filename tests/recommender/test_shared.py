"""What prompts share is computed once, and the answers are those of each prompt alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from curerec.prompts.encoding import Prompts, Queries, queries
from curerec.recommender import fitting, parallel
from curerec.recommender.score import answer_logits, score
from curerec.recommender.shared import Run, last_states, packed, runs
from made_catalogue import made_catalogue
from made_families import TYPES, left_padded, lora_on, made_family_model
from made_models import made_encoder, made_model, made_prompts

ALONE, ENCODER = made_prompts(5)
WORDS = len(ENCODER.tokenizer)


def rows(*texts: str) -> Prompts:
    ids = [np.frombuffer(t.encode(), np.uint8).astype(np.int64) for t in texts]
    offsets = np.r_[0, np.cumsum([len(r) for r in ids])]
    return Prompts(np.concatenate(ids), offsets, np.zeros((0, 5), np.int32), np.zeros(len(ids), np.int8))


def lists(users: int = 3, candidates: int = 7) -> Prompts:
    """Lists to rank among prompts of their own: one list, a prompt, the other lists."""
    data = made_catalogue()
    from curerec.data.splits import per_user_split

    asked = queries(data, per_user_split(data, seed=0).test.take(np.arange(0, 3 * users, 3)))
    at = np.repeat(np.arange(users), candidates)
    items = np.random.default_rng(0).integers(0, len(data.items), len(at)).astype(np.int32)
    made = Queries(asked.history[at], asked.rating[at], items, asked.label[at])
    return made_encoder().encode(made)


def joined(*parts: Prompts) -> Prompts:
    ids = np.concatenate([p.ids for p in parts])
    offsets = np.r_[0, np.cumsum(np.concatenate([p.lengths for p in parts]))]
    label = np.concatenate([p.label for p in parts])
    return Prompts(ids, offsets, np.zeros((0, 5), np.int32), label)


MIXED = joined(ALONE, lists())


def test_runs_are_neighbours_that_share_half_of_their_tokens():
    assert runs(rows("abcdX", "abcdY", "abcdZZ", "abcdW", "xy")) == [Run(0, 4, 4)]
    assert runs(rows("abcdX", "abcdY", "abcdZ")) == []  # too few
    assert runs(rows("abXXXX", "abYYYY", "abZZZZ", "abWWWW")) == []  # too little
    assert runs(rows("abcdef", "abcdeX", "abcdYY", "abcdeZ")) == [Run(0, 4, 4)]  # what all of them share
    assert runs(rows("aaaa", "aaaa", "aaaa", "aaaa")) == [Run(0, 4, 3)]  # one token is left to each
    assert runs(rows("aaaab", "aaaac", "aaaad", "aaaae", "bbbbb", "bbbbc", "bbbbd", "bbbbe")) == [
        Run(0, 4, 4),
        Run(4, 8, 4),
    ]
    assert runs(rows("a")) == [] and runs(ALONE.take(np.zeros(0, int))) == []


def test_batches_hold_every_prompt_once_and_no_more_than_asked():
    found = [Run(0, 5, 8), Run(5, 16, 9), Run(20, 24, 2)]
    batches = packed(found, 6)
    at = [k for batch in batches for run in batch for k in range(run.start, run.end)]
    assert sorted(at) == [*range(16), *range(20, 24)]
    assert max(sum(r.end - r.start for r in batch) for batch in batches) <= 6


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("lora", [False, True])
def test_answers_are_those_of_the_model_on_each_prompt(model_type, lora, monkeypatch):
    """Windows of two families are shorter than what is shared."""
    model = made_family_model(model_type, WORDS)
    model = lora_on(model) if lora else model
    found = runs(MIXED)
    assert len(found) == 3 and all(run.length > 24 for run in found)
    ids, last, mask = left_padded(MIXED, np.arange(len(MIXED)))
    with torch.no_grad():
        padded_left = answer_logits(model, ids, last, ENCODER.answers, mask=mask).numpy()
        plain = np.concatenate(
            [
                model(input_ids=torch.from_numpy(MIXED.padded(np.array([k]))[0])).logits[:, -1]
                for k in range(len(MIXED))
            ]
        )[:, list(ENCODER.answers)]
    took = []
    monkeypatch.setattr(
        "curerec.recommender.score.last_states", lambda *a: took.append(len(a[2])) or last_states(*a)
    )
    for batch_size in (256, 10):
        got = score(model, MIXED, ENCODER.answers, batch_size=batch_size)
        np.testing.assert_allclose(got, plain, atol=1e-5)
        np.testing.assert_allclose(got, padded_left, atol=1e-5)
    assert sum(took) >= 6 and max(took) == 3


@pytest.mark.parametrize("model_type", TYPES)
def test_no_more_share_than_have_room_for_their_keys_and_values(model_type, monkeypatch):
    model = made_family_model(model_type, WORDS)
    want = score(model, MIXED, ENCODER.answers)
    longest = int(MIXED.lengths.max())
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.zeros(5, longest, dtype=torch.long), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    weights = fitting._sizes_of(model)[2]
    monkeypatch.setattr(fitting, "memory_bytes", lambda device: weights + 2 * held)
    few = fitting.prompts_that_share(model, longest)
    # Layers that see a window hold less than is reckoned.
    assert few <= 5 and (few == 5 or getattr(model.config, "sliding_window", None))
    took = []

    def seen(base, prompts, batch, device):
        took.append(sum(run.end - run.start for run in batch))
        return last_states(base, prompts, batch, device)

    monkeypatch.setattr("curerec.recommender.score.last_states", seen)
    np.testing.assert_allclose(score(model, MIXED, ENCODER.answers), want, atol=1e-5)
    assert max(took) == few and sum(took) == len(lists())


def test_lists_are_scored_where_hardly_anything_fits_and_by_all_alike_where_they_keep_step(monkeypatch):
    model = made_family_model("llama", WORDS)
    want = score(model, lists(), ENCODER.answers)
    monkeypatch.setattr(fitting, "memory_bytes", lambda device: 0)
    assert fitting.prompts_that_share(model, 90) == 1
    np.testing.assert_allclose(score(model, lists(), ENCODER.answers), want, atol=1e-5)
    monkeypatch.setattr(parallel, "_in_step", True)
    assert fitting.prompts_that_share(model, 90) > len(MIXED)


def test_a_list_costs_its_history_once():
    """Tokens that the embedding sees, over all passes."""
    model, seen = made_model(WORDS), []
    tokens = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda m, args: tokens.append(args[0].numel()) if isinstance(m, torch.nn.Embedding) else None
    )
    try:
        score(model, lists(), ENCODER.answers)
    finally:
        handle.remove()
    found = runs(lists())
    assert sum(tokens) < 0.5 * lists().lengths.sum() and len(found) == 3
    # Whoever listens to a part of the model hears of every token of every prompt.
    handle = model.model.layers[0].register_forward_hook(lambda m, args, out: seen.append(args[0].shape[:2]))
    score(model, lists(), ENCODER.answers)
    handle.remove()
    assert sum(a * b for a, b in seen) >= lists().lengths.sum()
