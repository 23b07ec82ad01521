"""What a new store takes from the recommender that it is made of."""

from __future__ import annotations

import json
import shutil

from curerec.recommender import bases, storage
from curerec.requests.store import Store
from made_commands import curerec


def test_a_base_named_from_where_it_was_trained_is_found_from_everywhere(made_path, tmp_path, monkeypatch):
    """A service is started somewhere else, and no later command takes a base."""
    monkeypatch.setenv("CUREREC_CACHE", str(made_path.folder / "cache"))
    shutil.copytree(made_path.lora, tmp_path / "lora")
    card = json.loads((tmp_path / "lora" / storage.CARD).read_text())
    shutil.copytree(bases.resolve(card["base"]["name"]), tmp_path / "base")
    card["base"]["name"] = "base"
    (tmp_path / "lora" / storage.CARD).write_text(json.dumps(card))
    monkeypatch.chdir(tmp_path)
    made = curerec("request", "init", "--store", "store", "--recommender", "lora", "--data", made_path.data)
    assert made.code == 0, made
    monkeypatch.chdir("/")
    with Store(tmp_path / "store") as store:
        assert store.ledger.meta("base") == str((tmp_path / "base").resolve())
