"""The ledger's file: schema, the way from older ones, and what it does with damage."""

from __future__ import annotations

import sqlite3

import pytest
from made_store import made_store, users

from curerec.errors import StorageError
from curerec.requests import database
from curerec.requests.database import MIGRATIONS, VERSION, connect, migrate, transaction
from curerec.requests.store import Store


def old_file(path, version):
    """A file as a program of that version left it, with a request in it."""
    db = sqlite3.connect(path, isolation_level=None)
    for number in range(version):
        db.executescript(MIGRATIONS[number])
    db.execute(f"PRAGMA user_version = {version}")
    db.execute(
        "INSERT INTO request (id, content_key, kind, n_ids, received, state) "
        "VALUES ('r-0000000000000001', 'k', 'users', 1, '2026-01-01T00:00:00Z', 'open')"
    )
    db.execute("INSERT INTO subject VALUES ('r-0000000000000001', 0, NULL, 'usr001')")
    db.close()


def schema(db):
    return sorted(row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_an_old_file_becomes_a_new_one_with_what_is_in_it(version, tmp_path):
    old_file(tmp_path / "old", version)
    db = connect(tmp_path / "old")
    assert db.execute("PRAGMA user_version").fetchone()[0] == VERSION
    assert db.execute("SELECT item FROM subject").fetchone()[0] == "usr001"
    new = connect(tmp_path / "new", create=True)
    assert schema(db) == schema(new)
    db.close()
    new.close()


def test_a_migration_that_breaks_leaves_the_old_file(tmp_path, monkeypatch):
    old_file(tmp_path / "old", 1)
    monkeypatch.setattr(database, "MIGRATIONS", (MIGRATIONS[0], "CREATE TABLE x (a); CREATE TABLE x (a);"))
    with pytest.raises(StorageError):
        connect(tmp_path / "old")
    monkeypatch.undo()
    db = connect(tmp_path / "old")
    assert "artefact" in "".join(schema(db)) and "TABLE x" not in "".join(schema(db))
    db.close()


def test_a_newer_file_is_left_alone(tmp_path):
    old_file(tmp_path / "old", 1)
    db = sqlite3.connect(tmp_path / "old")
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    with pytest.raises(StorageError, match="newer curerec"):
        connect(tmp_path / "old")


def test_settings_that_durability_and_privacy_hang_on(tmp_path):
    db = connect(tmp_path / "new", create=True)
    for name, value in (
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("secure_delete", 1),
    ):
        assert db.execute(f"PRAGMA {name}").fetchone()[0] == value
    with pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT INTO subject VALUES ('r-none', 0, NULL, 'x')")
    with pytest.raises(ZeroDivisionError), transaction(db):
        db.execute("INSERT INTO meta VALUES ('a', 'b')")
        raise ZeroDivisionError
    assert db.execute("SELECT count(*) FROM meta").fetchone()[0] == 0
    migrate(db)
    db.close()


@pytest.mark.parametrize("damage", [b"", b"no database at all " * 300])
def test_a_damaged_file_is_said_to_be_one(damage, tmp_path):
    root = made_store(tmp_path / "store")
    (root / "ledger.sqlite").write_bytes(damage)
    with pytest.raises(StorageError, match="ledger"):
        Store(root)


def test_many_requests_cost_little(tmp_path):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        store.ledger.add_all(users(k) for k in range(500))
        one = (root / "ledger.sqlite-wal").stat().st_size
        store.ledger.add_all(users(k) for k in range(500, 1000))
        assert store.ledger.counts()["open"] == 1000
        assert (root / "ledger.sqlite-wal").stat().st_size < 2.5 * one
