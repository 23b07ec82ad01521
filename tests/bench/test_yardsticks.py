"""Which rows were measured with the same models, whatever their yardstick's file is called."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.bench.artefacts import EXAMPLES, YARDSTICKS, same_yardstick, write_arrays

MODELS = {"original": "a", "retrain": "b", "request": "r"}
LOGITS = {"original/forget": np.zeros((3, 2), np.float32), "retrain/forget": np.ones((3, 2), np.float32)}


@pytest.fixture
def written(tmp_path):
    """Write a yardstick that differs from the first in what is given; returns its name."""
    (tmp_path / YARDSTICKS).mkdir()

    def write(name, logits=None, **about):
        write_arrays(tmp_path / YARDSTICKS / name, {**LOGITS, **(logits or {})}, {**MODELS, **about})
        return name

    return write


def test_models_and_answers_make_a_yardstick_not_its_name(tmp_path, written):
    first = written("a.safetensors")
    again = written("b.safetensors", {"original/forget": LOGITS["original/forget"] + 1e-7}, **{EXAMPLES: "x"})
    assert same_yardstick(tmp_path, first, again)
    trained_anew = written("c.safetensors", retrain="other")
    assert not same_yardstick(tmp_path, first, trained_anew)
    other_answers = written("d.safetensors", {"original/forget": LOGITS["original/forget"] + 0.1})
    assert not same_yardstick(tmp_path, first, other_answers)
    fewer = written("e.safetensors", {"original/forget": LOGITS["original/forget"][:2]})
    assert not same_yardstick(tmp_path, first, fewer)


def test_of_files_that_are_gone_names_tell(tmp_path, written):
    first = written("a.safetensors")
    assert same_yardstick(tmp_path, "gone.safetensors", "gone.safetensors")
    assert not same_yardstick(tmp_path, first, "gone.safetensors")
    assert not same_yardstick(tmp_path, "gone.safetensors", "too.safetensors")
