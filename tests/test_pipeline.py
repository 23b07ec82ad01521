"""Training as a whole: what it loads."""

from __future__ import annotations

import pytest

from curerec.recommender import storage
from made_recommender import trained


@pytest.mark.parametrize(("kind", "loads"), [("lora", 1), ("full", 2)])
def test_training_loads_the_base_once_and_never_for_its_tokenizer(kind, loads, tmp_path, monkeypatch):
    """Once more where fine-tuning changes its weights and the base is asked afterwards."""
    seen = []
    inner = storage.load_base
    monkeypatch.setattr(storage, "load_base", lambda *args, **more: seen.append(args) or inner(*args, **more))
    trained(tmp_path, kind)
    assert len(seen) == loads
