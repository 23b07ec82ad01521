"""Stored answers are those of the model, and nothing else passes for them."""

from __future__ import annotations

import numpy as np

from curerec.recommender.original import FILE, key_of, original_logits, write_logits
from curerec.recommender.score import score
from made_models import made_model, made_prompts

PROMPTS, ENCODER = made_prompts(12)
TARGETS = np.random.default_rng(0).permutation(100)[:12]


def test_they_come_back_by_row_and_only_for_the_same_weights_and_prompts(tmp_path):
    logits = score(made_model(len(ENCODER.tokenizer)), PROMPTS, ENCODER.answers)
    key = key_of("a" * 64, PROMPTS.ids, PROMPTS.offsets)
    assert original_logits(tmp_path, TARGETS, key) is None
    write_logits(tmp_path, logits, TARGETS, key)
    index = np.asarray([3, 0, 7, 3])
    np.testing.assert_array_equal(original_logits(tmp_path, TARGETS[index], key), logits[index])
    assert len(original_logits(tmp_path, TARGETS[:0], key)) == 0
    for other in (
        key_of("b" * 64, PROMPTS.ids, PROMPTS.offsets),
        key_of("a" * 64, PROMPTS.ids + 1, PROMPTS.offsets),
        key_of("a" * 64, PROMPTS.ids, PROMPTS.offsets[:-1]),
    ):
        assert original_logits(tmp_path, TARGETS, other) is None
    unknown = np.setdiff1d(np.arange(100), TARGETS)[:1]
    assert original_logits(tmp_path, np.r_[TARGETS[:2], unknown], key) is None


def test_a_damaged_or_half_file_is_none(tmp_path):
    key = key_of("a" * 64, PROMPTS.ids, PROMPTS.offsets)
    path = write_logits(tmp_path, np.zeros((12, 2), np.float32), TARGETS, key)
    whole = path.read_bytes()
    assert path.name == FILE and path.stat().st_mode & 0o077 == 0
    for size in (0, 4, 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert original_logits(tmp_path, TARGETS, key) is None
