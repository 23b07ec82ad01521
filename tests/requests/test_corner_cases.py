"""Where a request could be lost, stuck, done twice or said to be more than it was: one test a window."""

from __future__ import annotations

import asyncio

import numpy as np
import pyarrow as pa
import pytest
from made_store import FIRST, bytes_under, made_data, made_store, predicates, stand, states, users

from curerec.data import request_file
from curerec.data.table import interactions
from curerec.errors import DataError, RefusedError, RequestError
from curerec.interactions import Interactions
from curerec.progress import Silent
from curerec.requests import engine, maintain, runner
from curerec.requests import ledger as ledgers
from curerec.requests import table as tables
from curerec.requests.audit import audit
from curerec.requests.database import forget_pages
from curerec.requests.desk import Desk
from curerec.requests.ledger import Asked
from curerec.requests.lock import held
from curerec.requests.runner import run
from curerec.requests.store import Store


@pytest.fixture
def root(tmp_path):
    return made_store(tmp_path / "store")


def pairs_of(store, user):
    """Interactions of a user: training targets, and rows that only stood in histories."""
    table = store.table()
    mine = table.data.user_code == np.flatnonzero(table.data.users == user)[0]
    target = np.isin(np.arange(len(mine)), table.split.train.target)
    rows = table.data.ratings.to_pylist()

    def named(mask):
        return [(rows[k]["user"], rows[k]["item"]) for k in np.flatnonzero(mask)]

    return named(mine & target), named(mine & table.trained & ~target)


@pytest.mark.parametrize("each", [False, True])
def test_a_user_and_a_row_and_an_item_of_his(root, each):
    """Whatever the order: nobody waits for rows that another request took along."""
    with Store(root) as store:
        targets, histories = pairs_of(store, "usr004")
        store.ledger.add(Asked("interactions", (targets[0],), due="2031-01-01"))
        store.ledger.add(Asked("interactions", (histories[0],), due="2031-01-02"))
        store.ledger.add(Asked("users", (("usr004",),), due="2030-01-01"))
        store.ledger.add(Asked("items", ((targets[1][1],),), due="2030-06-01"))
        done = run(store, stand(), each=each)
        assert all(one.committed for one in done), done
        assert store.ledger.counts()["committed"] == 4
        absent = [p["data"]["ids_absent"] for p in predicates(store)]
        assert sum(absent) == (2 if each else 1)
        assert any("no row was left" in text for p in predicates(store) for text in p["limits"])
    assert not audit(root).faults


def test_rows_of_histories_hold_nobody_else_up_and_hide_behind_nobody(root):
    with Store(root) as store:
        a = store.ledger.add(Asked("interactions", (pairs_of(store, "usr004")[1][0],)))[0]
        b = store.ledger.add(users(6))[0]
        done = run(store, stand())
        assert [one.committed for one in done] == [True, False] and "only a retrain" in done[1].reasons[0]
        assert [store.ledger.get(x)["state"] for x in (a, b)] == ["held", "committed"]


def test_a_record_counts_its_own_rows(root):
    with Store(root) as store:
        store.ledger.add(users(1))
        store.ledger.add(users(35))  # in no training
        assert run(store, stand())[0].committed
        one, two = sorted(predicates(store), key=lambda p: p["data"]["training_targets"])
        assert one["data"]["rows_deleted"] == two["data"]["rows_deleted"] == 20
        assert one["data"]["training_targets"] == 0 < two["data"]["training_targets"]
        assert one["batch"]["rows_deleted"] == 40
        assert any("batch's other rows" in text for text in one["limits"])


def test_the_same_retrain_after_a_rollback_is_a_batch_of_its_own(root):
    with Store(root) as store:
        first = store.version
        for _ in range(3):
            assert run(store, stand(), retrain=True)[0].committed
            second = store.version
            assert maintain.rollback(store) == first
        assert maintain.rollback(store) == second
        assert len({p["batch"]["id"] for p in predicates(store, "retrain")}) == 3
    assert not audit(root).faults


def test_rows_that_come_in_do_not_change_what_the_model_was_trained_on(root):
    fresh = made_data(20)
    shifted = fresh.ratings.to_pydict()
    more = interactions(
        shifted["user"], [f"new{i}" for i in shifted["item"]], shifted["rating"], [5] * len(fresh),
        {f"newitm{k}": f"New {k}" for k in range(30)}, name="made", source="test",
    )  # fmt: skip
    engine = stand(verified=None)
    with Store(root) as store:
        before = store.table()
        store.ledger.add(users(1))
        assert not run(store, engine)[0].committed and len(engine.calls) == 4
        maintain.ingest(store, more)
        after = store.table()
        assert after.new.sum() == len(more) and not (after.trained & after.new).any()
        for part in ("train", "valid"):
            old, new = getattr(before.split, part), getattr(after.split, part)
            for field in ("target", "history"):
                names = [
                    [t.data.ratings["item"][int(r)].as_py() for r in getattr(e, field)[:5].ravel() if r >= 0]
                    for t, e in ((before, old), (after, new))
                ]
                assert names[0] == names[1]
        # What a held batch had computed was of another table.
        assert not run(store, engine)[0].committed and len(engine.calls) == 8
        row = store.db.execute("SELECT count(*) FROM batch WHERE data_before IS NOT NULL").fetchone()
        assert row[0]
        assert run(store, stand(), seed=1)[0].committed
        assert not store.db.execute("SELECT 1 FROM batch WHERE data_before IS NOT NULL").fetchall()


def test_a_table_that_is_replaced_while_it_is_read(root, monkeypatch):
    real, calls = tables.load, []

    def load(folder, name):
        calls.append(name)
        if len(calls) == 1:  # a commit of another process, between the look at the ledger and at the folder
            with Store(root) as other:
                other.ledger.add(users(1))
                assert run(other, stand())[0].committed
        return real(folder, name)

    with Store(root) as store:
        monkeypatch.setattr(tables, "load", load)
        assert "usr001" not in store.table().data.users.tolist()
        monkeypatch.undo()
        next((root / "data").iterdir()).rename(root / "away")
        with pytest.raises(DataError, match="damaged"):
            store.table()


def test_a_cancelled_request_is_erased_at_once(root):
    with Store(root) as store, Store(root) as reader:
        name = store.ledger.add(Asked("users", (("usr017x",),), reason="usr017x wrote"))[0]
        assert b"usr017x" in bytes_under(root)
        store.ledger.cancel(name)
        assert b"usr017x" not in bytes_under(root)
        # Somebody reads an old state all the while: it goes with the next recovery.
        again = store.ledger.add(users(18))[0]
        reader.db.execute("BEGIN")
        reader.db.execute("SELECT count(*) FROM subject").fetchone()
        assert not forget_pages(store.db, patience_ms=10)
        reader.db.execute("COMMIT")
        store.ledger.cancel(again)
        run(store, stand())
        assert b"usr018" not in bytes_under(root / "ledger.sqlite-wal") and forget_pages(store.db)


def test_one_bad_addition_of_many_at_once_is_refused_alone(root, monkeypatch):
    """What the service writes together does not fail together."""
    real = ledgers.Ledger.add_inside

    def add_inside(self, asked):
        if asked.reason == "bad":
            raise ValueError("of somebody")
        return real(self, asked)

    monkeypatch.setattr(ledgers.Ledger, "add_inside", add_inside)

    async def all_at_once():
        desk = Desk(root)
        asked = [Asked("users", ((f"usr{k:03d}",),), reason="bad" if k == 3 else None) for k in range(9)]
        answers = await asyncio.gather(*(desk.add(one, ()) for one in asked), return_exceptions=True)
        desk.close()
        return answers

    answers = asyncio.run(all_at_once())
    assert [k for k, one in enumerate(answers) if isinstance(one, Exception)] == [3]
    assert "somebody" not in str(answers[3]) and states(root)["open"] == 8


def test_a_request_file_that_is_too_large_is_not_read_into_memory(root, tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_bytes(b"user\n" + b"1\n" * 2000)
    monkeypatch.setattr(request_file, "MAX_BYTES", 2000)
    with pytest.raises(RequestError, match="larger"):
        request_file.read_request(tmp_path / "x.csv")


def test_the_lock_is_no_file_that_could_be_removed(root):
    with runner.runner(root):
        assert held(root)
        for path in root.iterdir():
            assert path.name != "lock"
        with pytest.raises(RefusedError, match="another run"), runner.runner(root, wait_s=0):
            pass
    assert not held(root)


def test_a_cancellation_that_was_cut_off_goes_on_where_it_was(root, monkeypatch):
    """Beside a running service the last connection may stay open for long: the log is not to wait for it."""
    with Store(root) as store:
        name, _ = store.ledger.add(users(7))
        with monkeypatch.context() as patch:
            patch.setattr(ledgers, "forget_pages", lambda db: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                maintain.cancel(store, name)
        assert b"usr007" in (root / "ledger.sqlite-wal").read_bytes()
        maintain.cancel(store, name)
        ledger = b"".join(path.read_bytes() for path in root.glob("ledger.sqlite*"))
        assert b"usr007" not in ledger


def decided(store, monkeypatch):
    """A batch whose commit was cut off right after its decision."""
    with monkeypatch.context() as patch:
        patch.setattr(runner, "finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(store, stand())


def test_what_a_decision_said_of_old_versions_is_done_whatever_the_policy_says_since(root, monkeypatch):
    with Store(root) as store:
        first = store.version
        store.ledger.add(users(1))
        decided(store, monkeypatch)
    (root / "policy.yaml").write_text((root / "policy.yaml").read_text().replace("destroy", "quarantine"))
    with Store(root) as store:
        assert store.policy.old == "quarantine"
        run(store, stand())
        (said,) = [a for a in predicates(store)[0]["artefacts"] if a.get("sha256") == first]
        assert said["done"] == "destroyed"
    assert not (root / "versions" / first).exists() and not list((root / "quarantine").iterdir())
    assert not audit(root).faults


def test_what_is_registered_after_a_decision_is_none_of_it(root, tmp_path, monkeypatch):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    with Store(root) as store:
        maintain.register(store, tmp_path / "old", kind="cache", policy="destroy")
        store.ledger.add(users(1))
        decided(store, monkeypatch)
        maintain.register(store, tmp_path / "new", kind="cache", policy="destroy")
        assert not (tmp_path / "old").exists() and (tmp_path / "new").exists()
        run(store, stand())
        assert (tmp_path / "new").exists() and store.ledger.counts()["committed"] == 1
        maintain.register(store, tmp_path / "new", kind="cache", policy="list")
        store.ledger.add(users(2))
        run(store, stand())
    assert (tmp_path / "new").exists() and not audit(root).faults


def test_what_is_left_for_the_next_request_is_listed_by_who_leaves_it(root, tmp_path, monkeypatch):
    """The next commit may be of a process with another cache, which would not find it."""
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "a"))
    with Store(root) as store:
        opened = type("O", (), {"recommender": type("R", (), {"card": {"weights_sha256": FIRST}})})
        made = type(
            "E", (), {"__init__": lambda self, job: None, "opened": opened, "config": None, "clock": None}
        )
        monkeypatch.setattr(engine, "CureEngine", made)
        monkeypatch.setattr(engine, "prepare", lambda opened, side, *a, **k: side.mkdir(parents=True))
        engine.prepare_next(store, 0, Silent())
        row = store.db.execute("SELECT path, policy FROM artefact").fetchone()
        assert tuple(row) == (str(tmp_path / "a" / "retain" / FIRST), "destroy")


def test_a_title_goes_with_its_item_in_whatever_form_it_was_stored():
    stored, asked = "Cafe\u0301", "Caf\u00e9"
    ratings = {"user": ["a", "a"], "item": [stored, "b"], "rating": [4.0, 3.0], "time": [1, 2]}
    titles = pa.table({"item": [stored, "b"], "title": ["Coffee", "Tea"]})
    table = tables.Table(Interactions(pa.table(ratings), titles, "of before", "test"), np.zeros(2, np.int8))
    assert table.rows("items", [(asked,)]).tolist() == [True, False]
    assert table.titles_without([asked])["item"].to_pylist() == ["b"]
    assert table.titles_without([]) is titles
