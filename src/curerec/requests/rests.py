"""Looking for what a store should not hold any more: old tables, stages of no open batch, destroyed versions.

What a run has in place before it decides cannot be told from what an earlier one left, so nothing is said
of a store while a run is at work.
"""

from __future__ import annotations

from pathlib import Path

from curerec.data import durable
from curerec.requests.lock import held
from curerec.requests.store import Store

REMOVES = "`curerec request run` removes it"
FOLDERS = ("versions", "data", "work", "quarantine")


def rests(store: Store, found: list[str], notes: list[str]) -> None:
    """Add what is left in ``data/``, ``work/`` and ``quarantine/``.

    Args:
        store: opened.
        found: gets what may hold deleted rows, or what was learnt of them, where the records say it is gone.
        notes: gets what a run or a cancellation that was cut off left, of what is in force.
    """
    before, faults, left = _moment(store), list[str](), list[str]()
    _data(store, faults, left)
    _work(store, faults, left)
    _quarantine(store, faults)
    for name in FOLDERS:
        if any(path.name.startswith(durable.TEMPORARY) for path in _in(store.root / name)):
            left.append(f"{name}: holds what a process that was killed was writing or removing; {REMOVES}")
    if before is None or before != _moment(store):
        notes.append("a run is at work: what earlier ones may have left was not looked for")
        return
    found += faults
    notes += left


def _moment(store: Store) -> tuple[int, str | None, str | None] | None:
    """What any run changes; None: one is at work."""
    try:
        if held(store.lock):
            return None
    except OSError:  # a file system without locks: a copy
        pass
    last = store.db.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0]
    return last, store.ledger.meta("version"), store.ledger.meta("data")


def _in(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # not there: an empty one is not in every backup
        return []


def _kept(folder: Path) -> set[str]:
    return {path.name for path in _in(folder) if not path.name.startswith(durable.TEMPORARY)}


def _data(store: Store, found: list[str], notes: list[str]) -> None:
    if not _kept(store.root / "data") - {store.ledger.meta("data")}:
        return
    if store.db.execute("SELECT 1 FROM batch WHERE state = 'running'").fetchone():
        # Its name is in the ledger once it is decided on.
        notes.append(f"data: a table beside the stored one, as a run that was cut off has it; {REMOVES}")
    else:
        found.append(f"data: holds a table that is not the stored one, maybe with deleted rows; {REMOVES}")


def _work(store: Store, found: list[str], notes: list[str]) -> None:
    left = _kept(store.root / "work")
    rows = store.db.execute("SELECT id, state, version_before, data_before FROM batch").fetchall()
    left -= {row["id"] for row in rows if row["state"] in ("running", "held", "committing")}
    # A commit takes the name of the table from all batches before it.
    now = (store.version, store.ledger.meta("data"))
    given_up = {
        row["id"]
        for row in rows
        if row["state"] == "abandoned" and (row["version_before"], row["data_before"]) == now
    }
    if left & given_up:
        notes.append(f"work: holds stages of a batch that no run takes up again; {REMOVES}")
    if left - given_up:
        found.append(f"work: holds stages of no open batch, maybe of what was deleted; {REMOVES}")


def _quarantine(store: Store, found: list[str]) -> None:
    rows = store.db.execute("SELECT id FROM version WHERE state != 'destroyed'").fetchall()
    if _kept(store.root / "quarantine") - {row["id"] for row in rows}:
        found.append("quarantine: holds a version that is said to be destroyed, or is unknown; remove it")
