"""Checking a store, or an export of its ledger, from outside: chain, digests, signatures. Changes nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import rfc8785

from curerec.data import durable
from curerec.errors import CurerecError, DataError, StorageError
from curerec.recommender import manifest
from curerec.requests import chain, keys, signing
from curerec.requests.chain import FILE_NAME, Link
from curerec.requests.database import snapshot
from curerec.requests.rests import rests
from curerec.requests.store import CURRENT, Store

T = TypeVar("T")
EXPORT = "curerec-ledger/1"
OVERTAKEN = "versions: one is said to be lawful that knew rows which a record says were deleted"


@dataclass(frozen=True)
class Findings:
    """What an audit saw.

    Attributes:
        records, versions: how many were checked.
        signed: records whose signature was checked.
        faults: everything wrong, in words; empty: all holds.
        notes: what could not be checked.
        head: sha256 of the last record.
    """

    records: int
    versions: int
    signed: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    head: str | None


def audit(root: Path, *, public: Path | None = None, head: str | None = None) -> Findings:
    """Check a store.

    Args:
        root: its folder.
        public: PEM of the key that records must be signed with, from where nobody could change it; None takes
            the one in the store, if it signs.
        head: sha256 that the last record must have, kept elsewhere.

    Raises:
        StorageError: it is no store.
    """
    with Store(root, looks=True) as store:
        found: list[str] = []
        notes: list[str] = []
        _database(store.db, found)
        none: list[Link] = []
        links = _or_fault(found, "ledger, its records", none, store.links)
        key = public or store.public_key
        found += _or_fault(found, "chain", [], chain.faults, links, public=key, head=head)
        if key is None and any(one.signature for one in links):
            found.append("records are signed, and the public key of the store is not there")
        elif key is None:
            notes.append("records are not signed")
        _dates(links, notes)
        _or_fault(found, "records", None, _files, store, links, found)
        versions = _or_fault(found, "versions", 0, _versions, store, links, found, notes)
        try:
            store.table()
        except CurerecError as error:
            found.append(str(error))
        _or_fault(found, "stored table", None, _data, store, links, found, notes)
        _or_fault(found, "reports", None, _reports, store, links, found)
        _or_fault(found, "requests", None, _requests, store, links, found)
        _or_fault(found, "batches", None, _cut_off, store, found)
        _or_fault(found, "work, data, quarantine", None, rests, store, found, notes)
        return Findings(
            len(links),
            versions,
            len(links) if key else 0,
            tuple(dict.fromkeys(found)),
            tuple(notes),
            links[-1].sha256 if links else None,
        )


def _or_fault(
    found: list[str], what: str, otherwise: T, check: Callable[..., T], *given: Any, **named: Any
) -> T:
    """What a check returns; where it cannot be done that is a fault: a ledger may hold anything."""
    try:
        return check(*given, **named)
    except StorageError as error:  # of a page that is damaged
        found.append(str(error))
    except (AttributeError, TypeError, ValueError, KeyError):
        found.append(f"{what}: cannot be checked, the ledger or a record holds what curerec never writes")
    return otherwise


def _cut_off(store: Store, found: list[str]) -> None:
    if store.db.execute("SELECT 1 FROM batch WHERE state = 'committing'").fetchone():
        found.append("a commit was interrupted: `curerec request run` finishes it")


def _database(db: sqlite3.Connection, found: list[str]) -> None:
    try:
        if db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            found.append("ledger: its file is damaged")
        if db.execute("PRAGMA foreign_key_check").fetchone():
            found.append("ledger: a row points to one that is not there")
    except (StorageError, sqlite3.DatabaseError):
        found.append("ledger: its file is damaged")


def _files(store: Store, links: list[Link], found: list[str]) -> None:
    """The files of the chain are exactly those that the ledger says."""
    folder = store.root / "records"
    wanted = {one.name: one.body for one in links}
    key_id = signing.key_id(store.public_key) if store.public_key else ""
    for one in links:
        if one.signature is not None:
            wanted[one.name.replace(".json", ".dsse.json")] = chain.envelope(one, key_id)
    for name, body in wanted.items():
        try:
            if (folder / name).is_symlink() or (folder / name).read_bytes() != body:
                found.append(f"records/{name[:13]}...: differs from the ledger")
        except OSError:
            found.append(f"records/{name[:13]}...: is missing")
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in wanted and not path.name.startswith(durable.TEMPORARY):
            found.append("records: holds a file that the ledger does not know")


def _versions(store: Store, links: list[Link], found: list[str], notes: list[str]) -> int:
    current = store.root / CURRENT
    if not current.is_symlink() or os.readlink(current) != f"versions/{store.version}":
        found.append("current: does not point at the version of the ledger")
    put = [version for one in links if (version := chain.version_of(one))]
    if not put or put[-1] != store.version:
        found.append("version in force: is not the one that the last record names")
    rows = store.db.execute("SELECT id, state FROM version").fetchall()
    lawful = {row["id"] for row in rows if row["state"] == "lawful"}
    if store.version not in lawful:
        found.append("version in force: is not lawful")
    if lawful - _never_overtaken(links):
        found.append(OVERTAKEN)
    for name in sorted(lawful):
        try:
            store.version_folder(name)
        except CurerecError as error:
            found.append(str(error))
    folder, undecided = store.root / "versions", _undecided(store) - {row["id"] for row in rows}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in lawful or path.name.startswith(durable.TEMPORARY):
            continue
        if path.name in undecided:
            notes.append("versions: one is in place and not decided on: a run is at work, or was cut off")
        else:
            found.append("versions: holds a folder that is no lawful version")
    return len(lawful)


def _undecided(store: Store) -> set[str]:
    """Versions of begun batches: a commit puts them in place before it decides."""
    found = set()
    for row in store.db.execute("SELECT id FROM batch WHERE state = 'running'").fetchall():
        try:
            found.add(json.loads((store.root / "work" / row["id"] / "update.json").read_bytes())["adapter"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _never_overtaken(links: list[Link]) -> set[str]:
    """Versions that the records put in force, less those that a deletion of training rows came after."""
    kept: set[str] = set()
    for one in links:
        if one.action == "deletion" and _get(_predicate(one), "batch", "training_rows"):
            kept.clear()
        if version := chain.version_of(one):
            kept.add(version)
    return kept


def _data(store: Store, links: list[Link], found: list[str], notes: list[str]) -> None:
    """The stored table is the one that the last record about it names."""
    for one in reversed(links):
        said = _get(_predicate(one), "data", "after", "hmac_sha256")
        if said is None:
            continue
        owner = one.request if one.action == "deletion" and one.request else keys.LEDGER
        try:
            key = keys.read(store.root / "keys", owner)
        except CurerecError:
            # One that was destroyed has a record of that after it, which names the table in its place.
            found.append(f"keys: that of record {one.sequence} is not there: the table cannot be compared")
            return
        if keys.tag(key, "data", store.ledger.meta("data") or "") != said:
            found.append(f"stored table: is not the one that record {one.sequence} names")
        return
    notes.append("no record names the stored table")


def _reports(store: Store, links: list[Link], found: list[str]) -> None:
    for one in links:
        # The record's own word: what the ledger says beside it is in no digest and under no signature.
        batch = str(_get(_predicate(one), "batch", "id"))
        for subject in _subjects(one):
            name, digest = subject.get("name"), subject.get("digest", {}).get("sha256")
            if name in ("record.json", "report.html"):
                try:
                    fine = manifest.digest_of(store.root / "reports" / batch / name) == digest
                except OSError:
                    fine = False
                if not fine:
                    found.append(f"record {one.sequence}: its {name} is missing or differs")


def _requests(store: Store, links: list[Link], found: list[str]) -> None:
    rows = store.db.execute("SELECT * FROM request").fetchall()
    busy = {r["id"] for r in store.db.execute("SELECT id FROM batch WHERE state = 'committing'")}
    known = {row["id"] for row in rows}
    _against_records([dict(row) for row in rows if row["batch"] not in busy], known, links, found)
    # The record's own word, as in `_reports`.
    gone = {_get(_predicate(one), "request", "id") for one in links if one.action == "shred"}
    if gone != {row["id"] for row in rows if row["shredded"]}:
        found.append("ledger: the requests whose keys are destroyed are not those of the records")
    if any(isinstance(name, str) and (store.root / "keys" / name).exists() for name in gone):
        found.append("keys: one that a record says is destroyed is there, as a backup may bring it back")
    left = store.db.execute(
        "SELECT count(*) FROM subject JOIN request ON id = request WHERE state IN ('committed', 'cancelled')"
    ).fetchone()[0]
    if left:
        found.append("ledger: still names what a finished request deleted")


def _against_records(
    rows: list[dict[str, Any]], known: set[str], links: list[Link], found: list[str]
) -> None:
    """Requests that are said to be done are those of the records, once each, as they came in."""
    records = [one for one in links if one.action == "deletion"]
    said = {one.request or _get(_predicate(one), "request", "id"): one for one in records}
    if len(said) != len(records):
        found.append("chain: a request has two records")
    done = {row["id"]: row for row in rows if row["state"] == "committed"}
    for name in sorted(said.keys() - known):
        found.append(f"{name}: has a record and is not among the requests")
    for name in sorted(done.keys() - said.keys()):
        found.append(f"{name}: is said to be done and has no record")
    for name in sorted(said.keys() & {row["id"] for row in rows} - done.keys()):
        found.append(f"{name}: has a record and is not said to be done")
    for name in sorted(done.keys() & said.keys()):
        row, predicate = done[name], _predicate(said[name])
        asked = _get(predicate, "request") or {}
        same = all(asked.get(key) == row[key] for key in ("id", "kind", "n_ids", "received"))
        # The same request again may have brought an earlier date while its record was being written.
        late = (row["due"] or "9999") > (asked.get("due") or "9999")
        if not same or late or predicate.get("finished") != row["finished"]:
            found.append(f"{name}: is not what its record says")


def _dates(links: list[Link], notes: list[str]) -> None:
    before = ""
    for one in links:
        at = _predicate(one).get("finished") or _predicate(one).get("created") or ""
        if isinstance(at, str) and at < before:
            notes.append(f"record {one.sequence} is dated before the one before it: a clock was set back")
        before = at if isinstance(at, str) else before


def _get(content: Any, *path: str) -> Any:
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _predicate(one: Link) -> dict[str, Any]:
    try:
        return chain.statement(one.body, where="record")["predicate"]
    except DataError:
        return {}


def _subjects(one: Link) -> list[dict[str, Any]]:
    try:
        return [s for s in chain.statement(one.body, where="record")["subject"] if isinstance(s, dict)]
    except DataError:
        return []


def export(store: Store) -> bytes:
    """The ledger as one canonical JSON file without ids: states, versions, and the whole chain.

    Raises:
        DataError: a record in the ledger is damaged.
    """
    with snapshot(store.db):  # a commit in between would put two states into one file
        return _exported(store)


def _exported(store: Store) -> bytes:
    links = store.links()
    content: dict[str, Any] = {
        "format": EXPORT,
        "version": store.version,
        "requests": [
            {k: row[k] for k in ("id", "kind", "n_ids", "received", "due", "state", "finished")}
            for row in store.ledger.all(limit=1 << 40)
        ],
        "versions": [
            dict(row)
            for row in store.db.execute("SELECT id, created, state FROM version ORDER BY id").fetchall()
        ],
        "records": [
            {
                "sha256": one.sha256,
                "action": one.action,
                "body": chain.statement(one.body, where=f"record {one.sequence}"),
                "signature": base64.b64encode(one.signature).decode() if one.signature else None,
            }
            for one in links
        ],
        "head": links[-1].sha256 if links else None,
    }
    content["sha256"] = hashlib.sha256(rfc8785.dumps(content)).hexdigest()
    return rfc8785.dumps(content)


def audit_export(path: Path, *, public: Path | None = None, head: str | None = None) -> Findings:
    """Check an export of :func:`export`.

    Raises:
        DataError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=path.name) from None
    try:
        content = json.loads(raw)
        said = content.pop("sha256")
        ends = content["head"]
        if content["format"] != EXPORT or rfc8785.dumps({**content, "sha256": said}) != raw:
            raise ValueError
        links = [
            Link(
                k,
                str(r["sha256"]),
                str(r["action"]),
                rfc8785.dumps(r["body"]),
                base64.b64decode(r["signature"], validate=True) if r["signature"] else None,
            )
            for k, r in enumerate(content["records"], start=1)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, rfc8785.CanonicalizationError):
        return Findings(0, 0, 0, (f"export: is not canonical JSON of format {EXPORT}",), (), None)
    found = chain.faults(links, public=public, head=head)
    if hashlib.sha256(rfc8785.dumps(content)).hexdigest() != said:
        found.append("export: its content is not what its hash says")
    if ends != (links[-1].sha256 if links else None):
        found.append("export: does not end with its head")
    try:
        rows = content["requests"]
        _against_records(rows, {row["id"] for row in rows}, links, found)
        if {one["id"] for one in content["versions"] if one["state"] == "lawful"} - _never_overtaken(links):
            found.append(OVERTAKEN)
        put = [version for one in links if (version := chain.version_of(one))]
        if not put or content["version"] != put[-1]:
            found.append("export: the version in force is not the one that its last record names")
    except (KeyError, TypeError, AttributeError):
        found.append("export: its requests are not of this format")
    notes = () if public else ("an export without --public-key shows accidents, not forgeries",)
    return Findings(len(links), 0, len(links) if public else 0, tuple(found), notes, ends)


__all__ = ["FILE_NAME", "Findings", "audit", "audit_export", "export"]
