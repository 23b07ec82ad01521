"""`curerec verify` on a store that lacks something, was tampered with, is damaged or cannot be written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from unittest.mock import Mock

import pytest
import rfc8785
from made_store import made_store, stand, users

from curerec.data import durable
from curerec.errors import StorageError
from curerec.requests import commit, maintain
from curerec.requests import rests as rests_of
from curerec.requests.audit import audit, audit_export, export
from curerec.requests.database import VERSION
from curerec.requests.runner import run
from curerec.requests.store import Store
from made_commands import curerec, untouched


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of three commits."""
    root = made_store(tmp_path_factory.mktemp("made") / "store")
    with Store(root) as store:
        for k in range(3):
            store.ledger.add(users(k))
            assert run(store, stand())[0].committed
    return root


def test_verify_changes_nothing_and_needs_no_key_of_the_ledger_rows(root):
    with untouched(root):
        assert curerec("verify", root).code == 0


@pytest.mark.parametrize("name", ["records", "versions", "data", "reports"])
def test_a_folder_that_is_missing_is_a_fault(name, root, tmp_path):
    shutil.copytree(root, tmp_path / "store", symlinks=True)
    shutil.rmtree(tmp_path / "store" / name)
    result = curerec("verify", tmp_path / "store")
    assert result.code == 1 and "FAULT" in result.out and not result.err


def test_a_table_of_before_does_not_pass_where_the_key_that_would_tell_is_gone(tmp_path):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        before = store.ledger.meta("data")
        shutil.copytree(root / "data" / before, tmp_path / "before")
        name = store.ledger.add(users(1))[0]
        run(store, stand())
        shutil.rmtree(root / "data" / store.ledger.meta("data"))
        shutil.copytree(tmp_path / "before", root / "data" / before)
        store.ledger.set_meta("data", before)
        assert "usr001" in store.table().data.users.tolist()
    (root / "keys" / name).unlink()
    assert any("cannot be compared" in fault for fault in audit(root).faults)


def test_a_version_of_before_that_is_called_lawful_again_does_not_pass(tmp_path):
    """`rollback` would serve it."""
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        before = store.version
        shutil.copytree(store.version_folder(), tmp_path / "before")
        run(store, stand(), retrain=True)  # of no request: the version before stays lawful
        assert not audit(root).faults
        store.ledger.add(users(1))
        run(store, stand())
        shutil.copytree(tmp_path / "before", root / "versions" / before)
        store.db.execute("UPDATE version SET state = 'lawful' WHERE id = ?", (before,))
    assert any("deleted" in fault for fault in audit(root).faults)


def edited(root, *statements):
    db = sqlite3.connect(root / "ledger.sqlite")
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def test_a_report_is_held_against_its_record_whatever_the_ledger_says_beside_it(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "store", symlinks=True)
    edited(folder, "UPDATE record SET batch = NULL")
    assert not audit(folder).faults
    next(folder.glob("reports/*/report.html")).write_text("forged")
    assert any("report.html is missing or differs" in fault for fault in audit(folder).faults)


def test_a_request_with_a_record_that_the_ledger_has_lost_is_a_fault(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "store", symlinks=True)
    first = "SELECT request FROM record WHERE sequence = 2"
    edited(
        folder,
        f"DELETE FROM request WHERE id = ({first})",
        "UPDATE record SET request = NULL WHERE sequence = 2",
    )
    assert any("is not among the requests" in fault for fault in audit(folder).faults)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda made: made.update(requests=[]), "is not among the requests"),
        (lambda made: [one.update(state="lawful") for one in made["versions"]], "knew rows"),
    ],
)
def test_an_export_is_held_against_its_records(change, what, root, tmp_path):
    with Store(root) as store:
        content = json.loads(export(store))
    file = tmp_path / "ledger.json"
    for forged in (False, True):
        del content["sha256"]
        if forged:
            change(content)
        content["sha256"] = hashlib.sha256(rfc8785.dumps(content)).hexdigest()
        file.write_bytes(rfc8785.dumps(content))
        assert any(what in fault for fault in audit_export(file).faults) is forged


def test_a_run_that_was_cut_off_before_it_decided_is_no_fault(tmp_path, monkeypatch):
    """All that is in force is as it was; a version beside it that no batch made is one still."""
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        store.ledger.add(users(1))
        monkeypatch.setattr(commit.tables, "save", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(store, stand())
    seen = audit(root)
    assert len(list((root / "versions").iterdir())) == 2
    assert not seen.faults and any("not decided" in note for note in seen.notes)
    (root / "versions" / ("0" * 64)).mkdir()
    assert any("no lawful version" in fault for fault in audit(root).faults)


def test_what_the_records_say_is_gone_is_looked_for(root, tmp_path):
    """As a backup may bring it back: an old table, stages of a batch that was carried out, a version."""
    folder = shutil.copytree(root, tmp_path / "store", symlinks=True)
    assert not audit(folder).faults and audit(folder).notes == ("records are not signed",)
    with Store(folder) as store:
        ids = {row["state"]: row["id"] for row in store.db.execute("SELECT id, state FROM version")}
        batch = store.db.execute("SELECT id FROM batch").fetchone()["id"]
    places = (f"data/{'0' * 64}", f"work/{batch}", "work/other", f"quarantine/{ids['destroyed']}")
    for place in (*places, f"quarantine/{'0' * 64}"):
        (folder / place).mkdir()
        (fault,) = audit(folder).faults
        assert fault.startswith(place.split("/")[0]), (place, fault)
        assert not any(name in fault for name in place.split("/")[1:])
        (folder / place).rmdir()
    (folder / f"data/{'0' * 64}").mkdir()
    with Store(folder) as store:
        run(store, stand())
    assert not audit(folder).faults  # as the fault says


def test_what_a_cancellation_or_a_kill_left_is_noted(tmp_path, monkeypatch):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        name = store.ledger.add(users(1))[0]
        assert not run(store, stand(verified=None))[0].committed
        assert audit(root).notes == ("records are not signed",)  # held: the next run takes it up
        monkeypatch.setattr(durable, "destroy", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            maintain.cancel(store, name)
        seen = audit(root)
        assert not seen.faults and any(note.startswith("work: ") for note in seen.notes)
        (root / "data" / ".tmp-table").mkdir()
        seen = audit(root)
        assert not seen.faults and any(note.startswith("data: ") for note in seen.notes)


def test_nothing_is_said_of_rests_while_a_run_is_at_work(tmp_path):
    """What a run puts in place before it decides looks like what an earlier one left."""
    root, seen = made_store(tmp_path / "store"), []
    save = commit.tables.save

    def and_look(*given):
        name = save(*given)
        seen.append(audit(root))
        return name

    with Store(root) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit.tables, "save", and_look)
        store.ledger.add(users(1))
        assert run(store, stand())[0].committed
    assert len(list((root / "data").iterdir())) == 1 and not audit(root).faults
    assert not seen[0].faults and any("at work" in note for note in seen[0].notes)


def test_a_run_that_begins_and_ends_during_the_look_is_none_of_its_findings(tmp_path, monkeypatch):
    root, asked, found = made_store(tmp_path / "store"), [users(1)], []
    real = rests_of._work

    def after_a_run(*given):
        while asked:
            with Store(root) as other:
                other.ledger.add(asked.pop())
                assert run(other, stand())[0].committed
        real(*given)

    monkeypatch.setattr(rests_of, "_work", after_a_run)
    with Store(root, looks=True) as store:
        rests_of.rests(store, found, notes := [])
    assert not found and not asked and "at work" in notes[0]


@pytest.mark.slow
def test_an_export_is_of_one_state_though_a_run_commits_meanwhile(tmp_path, monkeypatch):
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        links, asked = store.links, [users(1)]

        def and_then_a_run():
            found = links()
            while asked:
                with Store(root) as other:
                    other.ledger.add(asked.pop())
                    assert run(other, stand())[0].committed
            return found

        monkeypatch.setattr(store, "links", and_then_a_run)
        (tmp_path / "ledger.json").write_bytes(export(store))
    assert not audit_export(tmp_path / "ledger.json").faults


def said(body, change):
    content = json.loads(body)
    change(content["predicate"], content["subject"])
    return rfc8785.dumps(content)


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("body", lambda body: said(body, lambda made, subjects: subjects[0].update(digest="x"))),
        ("body", lambda body: said(body, lambda made, subjects: made.update(request="x"))),
        ("body", lambda body: said(body, lambda made, subjects: made["request"].update(due=5))),
        ("body", lambda body: "text"),
        ("sha256", lambda body: "x/../\0"),
        ("signature", lambda body: "text"),
    ],
)
def test_a_ledger_that_holds_what_none_writes_is_a_fault(column, change, root, tmp_path):
    """Also where nothing of it can be read as a record; a traceback would say nothing of the rest."""
    shutil.copytree(root, tmp_path / "store", symlinks=True)
    db = sqlite3.connect(tmp_path / "store" / "ledger.sqlite")
    body = db.execute("SELECT body FROM record WHERE sequence = 3").fetchone()[0]
    db.execute(f"UPDATE record SET {column} = ? WHERE sequence = 3", (change(body),))
    db.commit()
    db.close()
    result = curerec("verify", tmp_path / "store")
    assert result.code == 1 and "FAULT" in result.out and not result.err, result


@pytest.mark.slow
def test_a_damaged_page_of_the_ledger_is_a_fault_and_quotes_nothing(tmp_path):
    """SQLite meets it at any row of an answer, and tells what it cannot read."""
    root = made_store(tmp_path / "store")
    with Store(root) as store:
        name = store.ledger.add(users(0))[0]
        run(store, stand())
        store.ledger.add_all(users(k, j) for k in range(1, 30) for j in range(k))
    raw = (root / "ledger.sqlite").read_bytes()
    pages = range(4096, len(raw), 5 * 4096)
    for at in pages:
        (root / "ledger.sqlite").write_bytes(raw[:at] + bytes(4096) + raw[at + 4096 :])
        results = [curerec("verify", root), curerec("request", "list", "--store", root)]
        assert results[0].code == 1 and results[1].code in (0, 2), (at, results)
        assert not any("Traceback" in result.err for result in results)
    # A byte that no UTF-8 text holds, in all ids of users.
    (root / "ledger.sqlite").write_bytes(raw.replace(b"usr0", b"usr\xff"))
    with Store(root) as store:
        for row in store.ledger.all(("open",), limit=9):
            with pytest.raises(StorageError, match="ledger: is damaged") as error:
                store.ledger.entries(row["id"])
            assert "usr" not in str(error.value)
        assert store.ledger.get(name)["state"] == "committed"


def test_a_copy_that_cannot_be_written_is_verified(root, monkeypatch):
    """As of a backup; what would write is refused."""
    folder, real = root.resolve(), os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: real(path, mode) and not (mode == os.W_OK and path == folder)
    )
    with untouched(folder):
        result = curerec("verify", folder)
        assert result.code == 0, result
        assert curerec("request", "list", "--store", folder).code == 0
        result = curerec("request", "run", "--store", folder)
        assert result.code == 2 and "read-only" in result.err
        assert not folder.with_name("ledger.sqlite-shm").exists()


@pytest.mark.parametrize("writable", [True, False])
def test_a_ledger_of_an_older_schema_is_verified_as_it_is(writable, root, tmp_path, monkeypatch):
    folder = shutil.copytree(root, tmp_path / "store", symlinks=True).resolve()
    db = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    for back in ("ALTER TABLE batch DROP COLUMN settings", "DROP INDEX record_request"):
        db.execute(back)
    db.execute("PRAGMA user_version = 2")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    real = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: real(path, mode) and (writable or not (mode == os.W_OK and path == folder)),
    )
    with untouched(folder):
        result = curerec("verify", folder)
        assert result.code == 0, result
        if not writable:
            assert curerec("request", "list", "--store", folder).code == 0
            (tmp_path / "request.csv").write_text("user\nusr009\n")
            added = curerec("request", "add", "--store", folder, "--file", tmp_path / "request.csv")
            assert added.code == 2 and "read-only" in added.err
    assert curerec("request", "list", "--store", folder).code == 0
    db = sqlite3.connect(folder / "ledger.sqlite")
    assert db.execute("PRAGMA user_version").fetchone()[0] == (VERSION if writable else 2)
    db.close()
