"""Requests from the ledger to the commit, with stand-in stages: states, gate, budget, what is left behind."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from made_store import adapter_bytes, bytes_under, made_data, made_store, predicates, sound, stand, users

from curerec.data.table import interactions
from curerec.errors import DataError, ModelError, RefusedError, RequestError, StorageError
from curerec.recommender import manifest
from curerec.requests import keys, maintain
from curerec.requests.ledger import Asked
from curerec.requests.runner import run
from curerec.requests.store import Store


@pytest.fixture
def root(tmp_path):
    return made_store(tmp_path / "store")


def test_a_request_from_in_tray_to_record(root):
    engine = stand()
    with Store(root) as store:
        first = store.version
        name, new = store.ledger.add(users(1, 2))
        done = run(store, engine)
        row = store.ledger.get(name)
        assert new and len(done) == 1 and done[0].committed and row["state"] == "committed"
        assert store.version != first and engine.calls == ["circuit", "groups", "update", "verdict"]
        table = store.table()
        assert not {"usr001", "usr002"} & set(table.data.users.tolist()) and len(table.data.users) == 38
        record = json.loads(store.links()[-1].body)
    assert (root / "current").resolve().name == store_version(root) != first
    assert not (root / "versions" / first).exists() and not list((root / "work").iterdir())
    assert len(list((root / "data").iterdir())) == 1
    predicate = record["predicate"]
    assert record["_type"] == "https://in-toto.io/Statement/v1" and predicate["action"] == "deletion"
    assert predicate["data"]["rows_deleted"] == 40 and predicate["verdict"]["verified"] is True
    assert {s["name"] for s in record["subject"]} == {"adapter", "record.json", "report.html"}
    assert [a["done"] for a in predicate["artefacts"]] == ["destroyed"] * 3
    assert any("no proof of erasure" in line for line in predicate["not_claimed"])
    assert sound(root).records == 2


@pytest.mark.parametrize("name", ["records", "reports", "work", "quarantine"])
def test_a_folder_that_a_backup_left_out_is_made_anew(name, root):
    """Some copies are without empty folders; what was in the chain's is in the ledger."""
    shutil.rmtree(root / name)
    with Store(root) as store:
        store.ledger.add(users(1))
        assert run(store, stand())[0].committed
    sound(root)


@pytest.mark.parametrize("name", ["versions", "data"])
def test_a_store_without_its_version_or_table_says_so(name, root):
    shutil.rmtree(root / name)
    with Store(root) as store:
        store.ledger.add(users(1))
        try:
            (done,) = run(store, stand())
        except DataError as error:
            assert name == "data" and "not there" in str(error)
        else:
            assert name == "versions" and not done.committed and "manifest" in done.reasons[0]


def store_version(root):
    with Store(root) as store:
        return store.version


def test_nobody_is_named_in_anything_that_is_left(root):
    with Store(root) as store:
        store.ledger.add(Asked("users", (("usr007",),), reason="usr007 wrote a letter"))
        table = store.table()
        pair = next(p for p in [("usr009", f"itm{k}") for k in range(30)] if table.has("interactions", [p]))
        store.ledger.cancel(store.ledger.add(Asked("interactions", (("usr030", pair[1]),)))[0])
        assert b"usr007" in bytes_under(root)
        run(store, stand())
        left = bytes_under(root)  # while the ledger is open: nothing waits in its write-ahead log either
    assert left.count(b"usr007") == 0


def test_the_same_request_twice_is_one(root):
    with Store(root) as store:
        a = store.ledger.add(Asked("users", (("usr001",), ("usr002",)), due="2030-05-01"))
        b = store.ledger.add(Asked("users", (("usr002",), ("usr001",), ("usr002",)), due="2030-04-01"))
        c = store.ledger.add(Asked("items", (("usr001",), ("usr002",))))
        assert a[0] == b[0] and (a[1], b[1]) == (True, False) and c[0] != a[0]
        assert store.ledger.get(a[0])["due"] == "2030-04-01"
        store.ledger.cancel(a[0])
        assert store.ledger.get(a[0])["state"] == "cancelled" and not store.ledger.entries(a[0])
        assert store.ledger.add(users(1, 2)) == (a[0], False)
        assert store.ledger.get(a[0])["state"] == "open" and store.ledger.entries(a[0]) == [
            ("usr001",),
            ("usr002",),
        ]
        with pytest.raises(RequestError, match="no such request"):
            store.ledger.get("r-0' OR 1=1 --")


def test_unknown_ids_are_refused_by_their_row(root):
    with Store(root) as store:
        with pytest.raises(RequestError, match=r"1 user\(s\).*row 3") as caught:
            store.table().check("users", [("usr001",), ("nobody",)], ("row 2", "row 3"), "x.csv")
        assert "nobody" not in str(caught.value)


@pytest.mark.parametrize("verified", [False, None])
def test_what_is_not_verified_is_not_promoted(root, verified):
    engine = stand(verified=verified)
    before = adapter_bytes(root)
    with Store(root) as store:
        name, _ = store.ledger.add(users(1))
        done = run(store, engine)
        assert not done[0].committed and store.ledger.get(name)["state"] == "held"
        assert "membership" in store.ledger.get(name)["detail"] and len(store.links()) == 1
        # State is kept: asked again, the stages are read, not repeated.
        assert not run(store, engine)[0].committed and len(engine.calls) == 4
        assert run(store, stand(), seed=1)[0].committed
    assert adapter_bytes(root) != before
    sound(root)


def test_unjudged_is_accepted_only_by_policy_and_the_record_says_so(tmp_path):
    root = made_store(tmp_path / "s", accept_unjudged=True)
    with Store(root) as store:
        store.ledger.add(users(1))
        assert run(store, stand(verified=None))[0].committed
        predicate = json.loads(store.links()[-1].body)["predicate"]
    assert predicate["verdict"]["verified"] is None and any(
        "could be judged" in t for t in predicate["limits"]
    )


def test_the_drift_budget_ends_in_a_retrain(tmp_path):
    root = made_store(tmp_path / "s", drift_budget=0.25)
    engine = stand(distance=0.1)
    with Store(root) as store:
        for k in range(3):
            store.ledger.add(users(k))
        done = run(store, engine, each=True)
        assert [one.committed for one in done] == [True, True, False]
        assert "retrain is due" in done[2].reasons[0] and store.drift()[0] == pytest.approx(0.2)
        again = run(store, engine)
        assert not again[0].committed and maintain.status(store)["requests"]["held"] == 1
        done = run(store, stand(distance=0.3, verified=False), retrain=True)
        assert done[0].committed and store.drift() == (0, 0)
        record = json.loads(store.links()[-1].body)["predicate"]
        assert record["algorithm"]["name"] == "retrain" and record["action"] == "deletion"
    sound(root)


def test_falls_of_the_auc_add_up(tmp_path):
    root = made_store(tmp_path / "s", auc_budget=0.003)
    with Store(root) as store:
        for k in range(3):
            store.ledger.add(users(k))
        done = run(store, stand(auc_drop=0.0015), each=True)
        assert [one.committed for one in done] == [True, True, False] and "retrain is due" in done[2].reasons[
            0
        ]


def test_a_retrain_that_is_worse_is_not_promoted(root):
    with Store(root) as store:
        done = run(store, stand(auc_drop=0.03), retrain=True)
        assert not done[0].committed and "utility" in done[0].reasons[0]


def test_rollback_goes_only_where_nothing_was_forgotten_since(root):
    with Store(root) as store:
        first = store.version
        assert run(store, stand(), retrain=True)[0].committed
        second = store.version
        assert maintain.rollback(store) == first and (root / "current").resolve().name == first
        assert maintain.rollback(store, second[:10]) == second
        sound(root)
        store.ledger.add(users(3))
        run(store, stand())
        for target in (None, first, second, "0" * 8):
            with pytest.raises(RefusedError, match="no such lawful version"):
                maintain.rollback(store, target)
    assert sound(root).records == 5 and not (root / "versions" / first).exists()


def test_quarantine_instead_of_destruction(tmp_path):
    root = made_store(tmp_path / "s", old="quarantine")
    cache, logits = tmp_path / "cache", tmp_path / "logits.safetensors"
    cache.mkdir()
    logits.write_bytes(b"x")
    with Store(root) as store:
        first = store.version
        maintain.register(store, cache, kind="cache", policy="quarantine")
        maintain.register(store, logits, kind="logits", policy="destroy")
        with pytest.raises(RequestError):
            maintain.register(store, tmp_path, kind="x", policy="destroy")
        store.ledger.add(users(3))
        run(store, stand())
        assert [v["state"] for v in maintain.versions(store)].count("quarantined") == 1
    with pytest.raises(ModelError, match="manifest"):
        manifest.check(root / "quarantine" / first)
    assert not cache.exists() and (tmp_path / "cache.quarantined").exists() and not logits.exists()
    sound(root)


def test_rows_that_trained_nothing_are_deleted_without_an_update(root):
    engine, before = stand(), adapter_bytes(root)
    with Store(root) as store:
        store.ledger.add(users(35, 38))  # not used, and public
        assert run(store, engine)[0].committed and not engine.calls
        assert not {"usr035", "usr038"} & set(store.table().data.users.tolist())
        limits = json.loads(store.links()[-1].body)["predicate"]["limits"]
    assert adapter_bytes(root) == before
    assert any("pre-training of the base" in line for line in limits) and any(
        "did not change" in x for x in limits
    )
    sound(root)


def test_rows_that_only_stood_in_histories_need_a_retrain(root):
    with Store(root) as store:
        table = store.table()
        only = np.flatnonzero(table.trained & ~np.isin(np.arange(len(table.data)), table.split.train.target))
        row = table.data.ratings.slice(int(only[0]), 1).to_pylist()[0]
        store.ledger.add(Asked("interactions", ((row["user"], row["item"]),)))
        done = run(store, stand())
        assert not done[0].committed and "only a retrain" in done[0].reasons[0]
        assert run(store, stand(), retrain=True)[0].committed
        assert not store.table().has("interactions", [(row["user"], row["item"])])


def test_overlapping_requests_are_both_done(root):
    with Store(root) as store:
        a, b = store.ledger.add(users(1, 2))[0], store.ledger.add(users(2))[0]
        done = run(store, stand(), each=True)
        assert all(one.committed for one in done) and len(done) == 2
        assert {store.ledger.get(x)["state"] for x in (a, b)} == {"committed"}
    assert sound(root).records == 3


def test_deleted_rows_do_not_come_back(root):
    with Store(root) as store:
        data = store.table().data
        store.ledger.add(users(1))
        store.ledger.add(Asked("items", (("itm4",),)))
        pair = data.ratings.slice(100, 1).to_pylist()[0]
        store.ledger.add(Asked("interactions", ((pair["user"], pair["item"]),)))
        assert run(store, stand())[0].committed
        assert "itm4" not in store.table().data.titles["item"].to_pylist()
        with pytest.raises(RefusedError, match="must not come back"):
            maintain.ingest(store, data)
        with pytest.raises(DataError, match="no row that is new"):
            maintain.ingest(store, data, skip=True)
        fresh = made_data(3, prefix="new")
        from_new = int((np.asarray(fresh.ratings["item"].to_pylist()) != "itm4").sum())
        assert maintain.ingest(store, fresh, skip=True) == (from_new, len(fresh) - from_new, 0)
        table = store.table()
        assert "new000" in table.data.users.tolist() and (table.part == 6).sum() == from_new
        assert run(store, stand(), retrain=True)[0].committed and not (store.table().part == 6).any()
    sound(root)


def test_a_batch_s_report_counts_each_entry_once_and_none_that_is_gone(root):
    seen = []

    class Looks(stand()):  # type: ignore[misc]
        def __init__(self, job):
            seen.append((job.kind, job.n_ids))
            super().__init__(job)

    with Store(root) as store:
        for asked in (users(1, 2), users(2, 3), users(1, 2, 3)):
            store.ledger.add(asked)
        assert run(store, Looks)[0].committed and seen == [("users", 3)]
        for asked in (users(4), Asked("items", (("itm4",),))):
            store.ledger.add(asked)
        assert run(store, Looks)[0].committed and seen[1:] == [(None, 2)]


def test_a_committed_report_says_what_the_record_does(root):
    with Store(root) as store:
        store.ledger.add(users(1))
        done = run(store, stand(verified=None), retrain=True)
        assert done[0].committed
        report = json.loads((root / "reports" / done[0].batch / "record.json").read_text())
        limits = predicates(store)[-1]["limits"]
    assert report["verdict"]["promoted"] is True
    assert report["verdict"]["notes"] == limits and "not a condition" in limits[-1]


def of_rows(rows):
    columns = [[row[name] for row in rows] for name in ("user", "item", "rating", "time")]
    return interactions(*columns, made_data().titles, name="more", source="test")


def test_rows_that_say_otherwise_of_what_is_known_are_left_and_counted(root):
    """The model was trained on what the table has; nobody is to believe that a new rating is in it."""
    with Store(root) as store:
        known = store.table().data.ratings.slice(0, 3).to_pylist()
        other = [{**known[0], "rating": known[0]["rating"] % 5 + 1}, {**known[1], "time": 7}]
        fresh = made_data(2, prefix="new").ratings.to_pylist()
        done = maintain.ingest(store, of_rows([*other, known[2], *fresh]))
        assert (done.added, done.refused, done.differing) == (len(fresh), 0, 2)
        kept = store.table().data.ratings.to_pylist()
        assert all(row in kept for row in known) and not any(row in kept for row in other)
        with pytest.raises(DataError, match="2 known with another rating or time"):
            maintain.ingest(store, of_rows(other))


def test_a_shredded_key_makes_pseudonyms_untestable(root):
    with Store(root) as store:
        name, _ = store.ledger.add(users(1))
        with pytest.raises(RefusedError, match="still needed"):
            maintain.shred(store, name)
        run(store, stand())
        said = json.loads(store.links()[-1].body)["predicate"]["request"]["pseudonyms"]
        key = keys.read(root / "keys", name)
        assert said == [keys.pseudonym(key, "users", ("usr001",))]
        assert maintain.shred(store, today="2020-01-01") == []
        assert maintain.shred(store, name) == [name] and maintain.shred(store, name) == []
        with pytest.raises(StorageError, match="destroyed"):
            keys.read(root / "keys", name)
        assert store.ledger.get(name)["shredded"] == 1
        ledger = store.ledger.key
    left = bytes_under(root)
    assert key not in left and keys.content_key(ledger, "users", [("usr001",)]).encode() not in left
    assert "was not compared" not in "".join(sound(root).notes)
    with Store(root) as store, pytest.raises(RefusedError):  # and the row itself still cannot come back
        maintain.ingest(store, made_data(2))


def test_keys_that_are_kept_for_longer_than_there_are_years(tmp_path):
    with Store(made_store(tmp_path / "store", retention_days=10**9)) as store:
        store.ledger.add(users(1))
        run(store, stand())
        assert maintain.shred(store) == []
