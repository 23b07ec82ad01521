"""Where a request could be lost, stuck, done twice or said to be more than it was: one test a window."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import sqlite3
import threading

import numpy as np
import pyarrow as pa
import pytest
from made_store import FIRST, bytes_under, made_data, made_store, predicates, stand, states, users

from curerec.data import request_file
from curerec.data.table import interactions
from curerec.errors import DataError, RefusedError, RequestError, StorageError
from curerec.interactions import Interactions
from curerec.progress import Silent
from curerec.requests import desk as desks
from curerec.requests import engine, maintain, runner
from curerec.requests import ledger as ledgers
from curerec.requests import table as tables
from curerec.requests.audit import audit
from curerec.requests.database import connect, forget_pages
from curerec.requests.desk import Desk
from curerec.requests.ledger import Asked
from curerec.requests.lock import held
from curerec.requests.runner import run
from curerec.requests.store import Store
from made_commands import curerec


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


def breaks(stage, *who):
    """An engine that breaks off at a stage where one of these users is to be deleted."""

    class Breaks(stand()):  # type: ignore[misc]
        def _stage(self, name):
            gone = self.job.table.data.ratings["user"].filter(self.job.deleted).to_pylist()
            if name == stage and not set(who).isdisjoint(gone):
                raise ValueError("about usr001")
            super()._stage(name)

    return Breaks


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("stage", ["circuit", "update", "verdict"])
def test_a_request_that_breaks_a_stage_holds_nobody_else_up(stage, each, root):
    with Store(root) as store:
        bad = store.ledger.add(Asked("users", (("usr001",),), due="2030-01-01"))[0]
        good = [store.ledger.add(users(k))[0] for k in range(2, 3 if each else 9)]
        done = run(store, breaks(stage, "usr001"), each=each)
        broke = [one for one in done if bad in one.requests]
        assert not any(one.committed for one in broke) and broke[-1].requests == (bad,)
        assert [len(one.requests) for one in broke] == ([1] if each else [8, 4, 2, 1])
        assert (
            "ValueError at test_corner_cases.py" in done[0].reasons[0] and "usr001" not in done[0].reasons[0]
        )
        assert store.ledger.get(bad)["state"] == "held"
        assert {store.ledger.get(name)["state"] for name in good} == {"committed"}
        assert not audit(root).faults
        assert run(store, stand())[0].committed


def test_two_that_break_and_one_that_deletes_all(root):
    with Store(root) as store:
        bad = [store.ledger.add(users(k))[0] for k in (1, 2)]
        whole = store.ledger.add(Asked("users", tuple((f"usr{k:03d}",) for k in range(40))))[0]
        good = [store.ledger.add(users(k))[0] for k in range(3, 9)]
        done = run(store, breaks("update", "usr001", "usr002"))
        assert {store.ledger.get(name)["state"] for name in good} == {"committed"}
        assert {store.ledger.get(name)["state"] for name in (*bad, whole)} == {"held"}
        assert {one.requests[0] for one in done if one.broke and len(one.requests) == 1} == {*bad, whole}
        assert not audit(root).faults


def test_what_breaks_every_batch_is_tried_fifteen_times_and_no_more(root):
    with Store(root) as store:
        for k in range(20):
            store.ledger.add(users(k))
        done = run(store, breaks("circuit", *(f"usr{k:03d}" for k in range(20))))
        assert [len(one.requests) for one in done] == [20, *[10] * 2, *[5] * 4, *[2, 3] * 4]
        assert store.ledger.counts()["held"] == 20
        assert len(run(store, stand())) == 1 and store.ledger.counts()["committed"] == 20


def test_a_batch_that_breaks_by_chance_is_committed_in_halves(root, tmp_path, monkeypatch):
    """And the command's exit code is that of what is left."""
    with Store(root) as store:
        for k in range(4):
            store.ledger.add(users(k))
    once = iter([True])

    class Once(stand()):  # type: ignore[misc]
        def _stage(self, name):
            if next(once, False):
                raise ValueError
            super()._stage(name)

    monkeypatch.setattr("curerec.requests.engine.CureEngine", Once)
    result = curerec("request", "run", "--store", root, "--no-prepare")
    assert result.code == 0, result
    assert result.out.count("committed, 2 request(s)") == 2 and result.out.count("in halves") == 1


def test_a_fault_after_the_decision_is_not_a_refusal(root, monkeypatch):
    with Store(root) as store:
        store.ledger.add(users(1))
        monkeypatch.setattr(runner, "finish", lambda store, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(store, stand())
        monkeypatch.undo()
        assert any("interrupted" in fault for fault in audit(root).faults)
        assert run(store, stand()) == [] and store.ledger.counts()["committed"] == 1
    assert not audit(root).faults


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


def test_a_clock_that_is_set_back(root, monkeypatch):
    days = iter(f"{2400 - k}-01-01T00:00:00Z" for k in range(300))
    monkeypatch.setattr(ledgers, "now", lambda: next(days))
    for module in (maintain, runner, __import__("curerec.requests.commit", fromlist=["now"])):
        monkeypatch.setattr(module, "now", lambda: next(days))
    with Store(root) as store:
        run(store, stand(), retrain=True)
        second = store.version
        run(store, stand(), retrain=True, seed=1)
        assert maintain.rollback(store) == second  # the one before, not the one with the latest date
        store.ledger.add(users(1))
        assert run(store, stand())[0].committed
    found = audit(root)
    assert not found.faults and any("a clock was set back" in note for note in found.notes)


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


def test_copies_that_the_ledger_made_of_ids_go_with_them(tmp_path, monkeypatch):
    """Rows that SQLite moves to another page leave a copy behind, which deleting the row does not reach."""
    draw = random.Random(5)
    monkeypatch.setattr(ledgers.secrets, "token_hex", lambda n: draw.randbytes(n).hex())
    connect(tmp_path / "ledger", create=True).close()
    ledger = ledgers.Ledger(tmp_path / "ledger", b"k" * 32)
    left, gone, number = set(), set(), itertools.count(1000)
    for k in range(120):
        longer = [draw.choice((0, 30, 700)) for _ in range(draw.choice((1, 2, 5, 40)))]
        ids = [f"usr{next(number)}{'x' * more}" for more in longer]
        name = ledger.add(Asked("users", tuple((i,) for i in ids), reason=ids[0][:400]))[0]
        (gone if k % 2 else left).add((name, *(i[:7].encode() for i in ids)))
    monkeypatch.setattr(ledgers, "forget_pages", lambda db: None)  # once for all of them
    for name, *_ in gone:
        ledger.cancel(name)
    file = (tmp_path / "ledger", tmp_path / "ledger-wal")
    assert forget_pages(ledger.db) and forget_pages(ledger.db)
    found = set(re.findall(rb"usr\d{4}", b"".join(path.read_bytes() for path in file)))
    assert found == {i for _, *ids in left for i in ids}
    ledger.close()


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


def test_a_look_at_the_ledger_that_fails_does_not_end_the_service_s_writing(root, monkeypatch):
    """Who writes would be gone, and every addition after it wait for ever."""
    real, failed = ledgers.Ledger.meta, threading.Event()

    def meta(self, key):
        if threading.current_thread().name == "ledger" and not failed.is_set():
            failed.set()
            raise StorageError("cannot be written (input/output error)", where="ledger")
        return real(self, key)

    monkeypatch.setattr(ledgers.Ledger, "meta", meta)
    monkeypatch.setattr(desks, "LOOK_S", 0.01)

    async def later():
        desk = Desk(root)
        desk._table = ("of before", None)
        while not failed.is_set():
            await asyncio.sleep(0.01)
        added = await asyncio.wait_for(desk.add(users(2), ()), 20)
        desk.close()
        return added

    assert asyncio.run(later())[1] and states(root)["open"] == 1


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


def test_a_date_moves_forward_only_until_the_record(root):
    with Store(root) as store:
        name = store.ledger.add(Asked("users", (("usr001",),), due="2030-05-01"))[0]
        run(store, stand())
        store.ledger.add(Asked("users", (("usr001",),), due="2020-01-01"))
        assert store.ledger.get(name)["due"] == "2030-05-01"
    assert not audit(root).faults


EDITS = (
    "UPDATE request SET due = '2035-01-01'",
    "UPDATE request SET due = NULL",
    "UPDATE request SET received = '2035-01-01T00:00:00Z'",
    "UPDATE request SET finished = '2035-01-01T00:00:00Z'",
    "UPDATE request SET kind = 'items'",
    "UPDATE request SET n_ids = 7",
    "UPDATE request SET state = 'cancelled'",
    "UPDATE request SET state = 'open'",
    "UPDATE request SET shredded = 1",
    "UPDATE meta SET value = 'x' WHERE key = 'version'",
    "UPDATE version SET state = 'lawful'",
)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_the_ledger_shows(edit, root, capsys):
    with Store(root) as store:
        store.ledger.add(Asked("users", (("usr001",),), due="2030-05-01"))
        run(store, stand())
    db = sqlite3.connect(root / "ledger.sqlite")
    db.execute(edit)
    db.commit()
    db.close()
    assert audit(root).faults


@pytest.mark.parametrize(
    ("where", "says"), [("no/ledger.json", "its folder is not there"), (".", "it is a folder")]
)
def test_an_export_to_no_place_is_told_as_that(root, tmp_path, where, says):
    (tmp_path / "out").mkdir()
    result = curerec("request", "export", "--store", root, "--out", tmp_path / "out" / where)
    assert result.code == 2 and says in result.err and "disk" not in result.err, result


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


def test_a_key_that_comes_back_from_a_backup_is_found(root):
    with Store(root) as store:
        names = [store.ledger.add(users(k))[0] for k in (1, 2)]
        run(store, stand(), each=True)
        key = (root / "keys" / names[0]).read_bytes()
        maintain.shred(store, names[0])
        assert not audit(root).faults
        (root / "keys" / names[0]).write_bytes(key)
        assert any("is there, as a backup may bring it back" in fault for fault in audit(root).faults)
        (root / "keys" / names[0]).unlink()
        # What the ledger says beside the records is under no digest.
        store.db.execute("UPDATE request SET shredded = (id = ?)", (names[1],))
        store.db.execute("UPDATE record SET request = ? WHERE action = 'shred'", (names[1],))
        store.db.commit()
        assert any("keys are destroyed" in fault for fault in audit(root).faults)


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
