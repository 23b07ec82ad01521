"""What else holds influence of who is deleted: listed, destroyed or quarantined at the commit."""

from __future__ import annotations

import json
import shutil

import pytest
from made_store import bytes_under, fill, made_store, made_table, predicates, stand, states, users

from curerec.data import durable
from curerec.data.cache import retain_side_at
from curerec.errors import RefusedError, RequestError
from curerec.recommender import bases, storage, stored_answers
from curerec.requests import maintain, runner
from curerec.requests import store as stores
from curerec.requests.audit import audit
from curerec.requests.policy import Policy
from curerec.requests.retain_sides import KIND
from curerec.requests.runner import run
from curerec.requests.store import Store


@pytest.fixture
def root(tmp_path):
    return made_store(tmp_path / "store")


def test_quarantine_over_several_commits(tmp_path):
    root = made_store(tmp_path / "s", old="quarantine")
    cache = tmp_path / "cache"
    with Store(root) as store:
        for k in range(3):
            cache.mkdir()
            maintain.register(store, cache, kind="cache", policy="quarantine")
            store.ledger.add(users(k))
            assert run(store, stand())[0].committed
        assert [v["state"] for v in maintain.versions(store)].count("quarantined") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "cache.quarantined", "cache.quarantined-2", "cache.quarantined-3", "s",
    ]  # fmt: skip
    assert not audit(root).faults


def test_destruction_that_was_cut_off_is_finished(root, tmp_path, monkeypatch):
    outside = tmp_path / "checkpoint"
    outside.mkdir()
    (outside / "weights").write_bytes(b"of somebody")
    remove = durable._remove

    def cut(path):
        if path.parent == tmp_path:
            raise KeyboardInterrupt
        remove(path)

    with Store(root) as store:
        maintain.register(store, outside, kind="checkpoint", policy="destroy")
        store.ledger.add(users(1))
        monkeypatch.setattr(durable, "_remove", cut)
        with pytest.raises(KeyboardInterrupt):
            run(store, stand())
        monkeypatch.undo()
        assert b"of somebody" in bytes_under(tmp_path)
        run(store, stand())
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert states(root)["committed"] == 1 and not audit(root).faults


def test_what_is_gone_or_stays_is_not_said_to_be_destroyed(root, tmp_path):
    for name in ("listed", "doomed"):
        (tmp_path / name).mkdir()
        policy = "list" if name == "listed" else "destroy"
        with Store(root) as store:
            maintain.register(store, tmp_path / name, kind=name, policy=policy)
        shutil.rmtree(tmp_path / name)
    with Store(root) as store:
        run(store, stand(), retrain=True)
        said = predicates(store, "retrain")[0]["artefacts"]
        assert said == [
            {"kind": "circuit, groups, update and verdict of the run", "done": "destroyed"},
            {"kind": "doomed outside of the store", "done": "was gone already"},
        ]
        with store.db:
            assert [v["state"] for v in maintain.versions(store)] == ["lawful", "lawful"]


def test_a_base_model_is_no_artefact(root, tmp_path):
    (tmp_path / "models" / "base").mkdir(parents=True)
    with Store(root) as store:
        store.ledger.set_meta("base", str(tmp_path / "models" / "base"))
        (tmp_path / "models" / "base" / "weights").write_text("x")
        for path in (tmp_path / "models", tmp_path / "models" / "base" / "weights"):
            with pytest.raises(RequestError, match="base model"):
                maintain.register(store, path, kind="cache", policy="destroy")
        with runner.runner(store.lock), pytest.raises(RefusedError, match="another run"):
            maintain.register(store, tmp_path / "models", kind="cache", policy="list")


def test_a_base_model_that_is_found_by_its_name_is_no_artefact(root, tmp_path, monkeypatch):
    """As with every store whose base `curerec train` made: it is in the cache, and no path of it is kept."""
    made = tmp_path / "cache" / "nano-0123"
    made.mkdir(parents=True)
    monkeypatch.setattr(bases, "resolve", lambda name, *, offline: made if offline else None)
    monkeypatch.setattr(storage, "read_card", lambda folder: {"base": {"name": made.name}})
    with Store(root) as store:
        with pytest.raises(RequestError, match="base model"):
            maintain.register(store, tmp_path / "cache", kind="cache", policy="destroy")
        maintain.register(store, tmp_path / "cache", kind="cache", policy="list")


@pytest.mark.parametrize("old", ["destroy", "quarantine"])
def test_stored_answers_go_with_their_version_and_are_listed(old, tmp_path):
    def filled(folder):
        (folder / stored_answers.FILE).write_bytes(b"of everybody")
        return fill(folder)

    root = tmp_path / "s"
    stores.create(root, made_table(), filled, policy=Policy(old=old))
    with Store(root) as store:
        first = store.version
        store.ledger.add(users(1))
        assert run(store, stand())[0].committed
        listed = predicates(store, "deletion")[0]["artefacts"]
    kind, done = (
        "stored answers to the training examples",
        {"destroy": "destroyed", "quarantine": "quarantined"}[old],
    )
    assert {"kind": kind, "adapter": first, "done": done} in listed
    assert not list(root.glob(f"versions/*/{stored_answers.FILE}"))
    assert (b"of everybody" in bytes_under(root)) == (old == "quarantine")
    assert not audit(root).faults


def test_what_was_kept_for_the_next_request_goes_at_the_commit(tmp_path, monkeypatch):
    """Whoever left it there, also where the cache is another one by the time of the commit."""

    def filled(folder):
        about = fill(folder)
        (folder / "curerec.json").write_text(json.dumps({"weights_sha256": "ab" * 32}))
        return about

    root, cache = tmp_path / "s", tmp_path / "cache"
    monkeypatch.setenv("CUREREC_CACHE", str(cache))
    stores.create(root, made_table(), filled)
    for name in ("ab", "cd"):
        retain_side_at(name * 32).mkdir(parents=True)
        (retain_side_at(name * 32) / "circuit.safetensors").write_bytes(b"of everybody")
    with Store(root) as store:
        store.ledger.add(users(1))
        assert not run(store, stand(verified=False))[0].committed
        assert retain_side_at("ab" * 32).exists()
        monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "another"))
        assert run(store, stand(), seed=1)[0].committed
        listed = predicates(store)[0]["artefacts"]
    assert {"kind": f"{KIND} outside of the store", "done": "destroyed"} in listed
    assert [p.name for p in (cache / "retain").iterdir()] == ["cd" * 32]
    assert not audit(root).faults
