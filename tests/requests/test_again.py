"""What is taken back, and what comes in again: dates, what a run left, and rows that were deleted."""

from __future__ import annotations

import pytest
from made_store import made_data, made_store, stand, users

from curerec.data import durable
from curerec.errors import DataError, RefusedError
from curerec.requests import maintain
from curerec.requests.audit import audit
from curerec.requests.ledger import Asked
from curerec.requests.runner import run
from curerec.requests.store import Store


@pytest.fixture
def root(tmp_path):
    return made_store(tmp_path / "store")


def sound(root):
    found = audit(root)
    assert not found.faults, found.faults


def test_a_cancelled_request_that_comes_in_again_has_the_dates_of_its_new_arrival(root, monkeypatch):
    """A date that was taken back binds nobody, and could have passed long ago."""
    monkeypatch.setattr("curerec.requests.ledger.now", lambda: "2029-01-01T00:00:00Z")
    with Store(root) as store:
        name = store.ledger.add(Asked("users", (("usr001",),), due="2029-02-01"))[0]
        store.ledger.cancel(name)
        monkeypatch.setattr("curerec.requests.ledger.now", lambda: "2030-01-01T00:00:00Z")
        assert store.ledger.add(Asked("users", (("usr001",),), due="2030-02-01")) == (name, False)
        row = store.ledger.get(name)
        assert (row["received"], row["due"]) == ("2030-01-01T00:00:00Z", "2030-02-01")
        store.ledger.cancel(name)
        store.ledger.add(users(1))
        assert store.ledger.get(name)["due"] is None
        assert run(store, stand())[0].committed
    sound(root)


@pytest.mark.parametrize("before", [False, True])
def test_deleted_rows_do_not_come_back_spelled_otherwise(tmp_path, monkeypatch, before):
    """Also of a store whose table and tags are from before ids were of one Unicode form."""
    with monkeypatch.context() as patch:
        if before:
            patch.setattr("curerec.data.columns.nfc", lambda text: text)
            patch.setattr("curerec.requests.ledger.unicodedata.normalize", lambda form, text: text)
        root = made_store(tmp_path / "store", data=made_data(prefix="Ame\u0301lie"))
        with Store(root) as store:
            store.ledger.add(Asked("users", (("Ame\u0301lie001",),)))
            if before:
                assert run(store, stand())[0].committed
    with Store(root) as store:
        asked = [Asked("users", ((f"{name}002",),)) for name in ("Amélie", "Ame\u0301lie")]
        same = [store.ledger.add(one)[0] for one in asked]
        assert same[0] == same[1]
        store.table().check("users", [("Amélie002",), ("Ame\u0301lie002",)], (), "x.csv")
        assert run(store, stand())[0].committed
        assert len(store.table().data.users) == 38
        for name in ("Amélie", "Ame\u0301lie"):
            more = made_data(3, prefix=name)
            with pytest.raises(RefusedError, match=r"40 row\(s\) were deleted"):
                maintain.ingest(store, more)
            with pytest.raises(DataError, match="no row that is new"):  # of the one who stayed
                maintain.ingest(store, more, skip=True)
    sound(root)


@pytest.mark.parametrize("at", [1, 2])
def test_what_a_cancelled_request_left_goes_though_a_kill_comes_between(root, monkeypatch, at):
    """Before its folder is renamed out of sight, or before its bytes are gone."""
    real, calls = durable.os.rename if at == 1 else durable._remove, []
    where = (durable.os, "rename") if at == 1 else (durable, "_remove")
    with Store(root) as store:
        kept, gone = store.ledger.add(users(1))[0], store.ledger.add(users(2))[0]
        assert not any(one.committed for one in run(store, stand(verified=None), each=True))
        monkeypatch.setattr(*where, lambda *a: calls.append(a) or (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            maintain.cancel(store, gone)
        monkeypatch.setattr(*where, real)
        assert calls and store.ledger.get(gone)["state"] == "cancelled"
        sound(root)
        maintain.cancel(store, gone)  # asked again it goes on
        left = {path.name for path in (root / "work").iterdir()}
        assert left == {store.ledger.get(kept)["batch"]}
        assert store.ledger.add(users(2)) == (gone, False)
        assert all(one.committed for one in run(store, stand(), each=True, seed=1))
    sound(root)


def test_what_a_request_left_that_is_cancelled_during_a_run_goes_with_that_run(root):
    class Cancelling(stand(verified=None)):
        def circuit(self):
            with Store(root) as other:
                maintain.cancel(other, gone)
            assert len(list((root / "work").iterdir())) == 2  # the run's own, and what it may be reading
            return super().circuit()

    with Store(root) as store:
        gone = store.ledger.add(users(1))[0]
        assert not run(store, stand(verified=None))[0].committed
        store.ledger.add(users(2))
        store.ledger.add(Asked("items", (("itm3",),)))
        other = stand(verified=None)
        run(store, type("Each", (Cancelling,), {"calls": other.calls}), each=True)
        assert store.ledger.get(gone)["state"] == "cancelled"
        batches = {store.ledger.get(row["id"])["batch"] for row in store.ledger.all(("held",))}
        assert {path.name for path in (root / "work").iterdir()} == batches
    sound(root)
