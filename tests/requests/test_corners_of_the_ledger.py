"""What the ledger and its copies could let slip: ids, edits, clocks, exports and keys."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import sqlite3
import threading

import pytest
from made_store import made_store, stand, states, users

from curerec.errors import StorageError
from curerec.requests import desk as desks
from curerec.requests import ledger as ledgers
from curerec.requests import maintain, runner
from curerec.requests.audit import audit
from curerec.requests.database import connect, forget_pages
from curerec.requests.desk import Desk
from curerec.requests.ledger import Asked
from curerec.requests.runner import run
from curerec.requests.store import Store
from made_commands import curerec


@pytest.fixture
def root(tmp_path):
    return made_store(tmp_path / "store")


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
