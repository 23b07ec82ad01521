"""Which rows were measured with the same models, whatever their yardstick's file is called."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from curerec.bench.artefacts import EXAMPLES, TITLES, YARDSTICKS, read_arrays, same_yardstick, write_arrays
from curerec.bench.materials import _answering
from curerec.errors import StorageError

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


def test_a_folder_that_cannot_be_made_is_of_the_disk(tmp_path):
    (tmp_path / "predictions").write_text("a file")
    with pytest.raises(StorageError, match="predictions"):
        write_arrays(tmp_path / "predictions" / "x.safetensors", {}, {})


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


def test_answers_to_prompts_with_other_titles_are_not_taken(tmp_path, written):
    """Whose models may be the same: a title need not be of an item that anybody was trained on."""
    named, before = written("a.safetensors", **{TITLES: "t"}), written("b.safetensors")
    for name, titles, taken in ((named, "t", True), (named, "other", False), (before, "t", True)):
        found = read_arrays(tmp_path / YARDSTICKS / name, {**MODELS, TITLES: titles})
        assert (found is not None) == taken
    assert read_arrays(tmp_path / YARDSTICKS / before, {**MODELS, "request": "s", TITLES: "t"}) is None
    assert same_yardstick(tmp_path, named, before)


def test_of_files_that_are_gone_names_tell(tmp_path, written):
    first = written("a.safetensors")
    assert same_yardstick(tmp_path, "gone.safetensors", "gone.safetensors")
    assert not same_yardstick(tmp_path, first, "gone.safetensors")
    assert not same_yardstick(tmp_path, "gone.safetensors", "too.safetensors")


@pytest.mark.parametrize(
    ("dtype", "device", "said"),
    [
        (torch.float32, "cpu", {}),
        (torch.bfloat16, "cpu", {"type": "bfloat16", "device": "cpu"}),
        (torch.float32, "cuda", {"type": "float32", "device": "cuda"}),
    ],
)
def test_answers_of_another_type_or_device_are_another_yardstick(dtype, device, said):
    """A run that goes on on a GPU would hold half precision against float32 answers of the original."""
    weight = SimpleNamespace(dtype=dtype, device=torch.device(device))
    model = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight))
    assert _answering(SimpleNamespace(recommender=SimpleNamespace(model=model))) == said
