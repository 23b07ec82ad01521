"""A store brought to rest after a kill: what was decided is finished, and the rest of it removed."""

from __future__ import annotations

import json
from pathlib import Path

from curerec.data import durable
from curerec.requests import keys
from curerec.requests.commit import destroy_unlawful, finish
from curerec.requests.database import forget_pages, transaction
from curerec.requests.stages import ADAPTER, RETRAIN
from curerec.requests.store import CURRENT, FOLDERS, Store


def recover(store: Store) -> None:
    """Bring a store to rest after a kill, under the lock: finish what was decided, remove the rest."""
    with durable.storing(store.root.name):
        for name in FOLDERS:  # one that was empty is not in every backup
            (store.root / name).mkdir(mode=0o700, exist_ok=True)
    for name in ("", *FOLDERS):
        durable.sweep(store.root / name)
    for row in store.db.execute("SELECT id FROM batch WHERE state = 'committing'").fetchall():
        finish(store, row["id"])
    store.write_records()
    durable.point(store.root / CURRENT, f"versions/{store.version}")
    destroy_unlawful(store)
    rows = store.db.execute("SELECT id FROM version WHERE state IN ('lawful', 'unlawful')").fetchall()
    known = {row["id"] for row in rows}
    busy = _give_up_superseded(store)
    for path in (store.root / "versions").iterdir():
        if path.name not in known:
            _take_back(store, path, busy)
    for path in (store.root / "data").iterdir():
        if path.name != store.ledger.meta("data"):
            durable.destroy(path)
    clear_work(store)
    for name in busy:
        durable.sweep(store.root / "work" / name)
    undecided = store.db.execute("SELECT id FROM batch WHERE decided IS NULL").fetchall()
    for row in undecided:
        durable.destroy(store.root / "reports" / row["id"])
    for row in store.db.execute("SELECT id FROM request WHERE shredded = 1").fetchall():
        keys.destroy(store.root / "keys", row["id"])
    forget_pages(store.db)


def clear_work(store: Store) -> None:
    """Remove the stages of batches that no run will take up again, under the lock; may be repeated."""
    busy = _give_up_superseded(store)
    for path in (store.root / "work").iterdir():
        if path.name not in busy:
            durable.destroy(path)


def _give_up_superseded(store: Store) -> set[str]:
    """Held batches that no run will take up again: their requests went into others or one was cancelled, or
    the version or the table is another. Each holds a whole adapter. Returns those that a run may take up."""
    with transaction(store.db) as db:
        db.execute(
            "UPDATE batch SET state = 'abandoned' WHERE state = 'held' AND ("
            "version_before IS NOT ? OR data_before IS NOT ? "
            "OR id IN (SELECT batch FROM request WHERE state = 'cancelled') "
            # A retrain may be of no request at all.
            "OR method != ? AND id NOT IN "
            "(SELECT batch FROM request WHERE state = 'held' AND batch NOTNULL))",
            (store.version, store.ledger.meta("data"), RETRAIN),
        )
        return {r["id"] for r in db.execute("SELECT id FROM batch WHERE state IN ('running', 'held')")}


def _take_back(store: Store, path: Path, busy: set[str]) -> None:
    """A version that was moved into place and not decided on: back to its batch's work, or away."""
    for batch in busy:
        try:
            answer = json.loads((store.root / "work" / batch / "update.json").read_bytes())
        except (OSError, ValueError):
            continue
        if answer.get("adapter") == path.name and not (store.root / "work" / batch / ADAPTER).exists():
            durable.move(path, store.root / "work" / batch / ADAPTER)
            return
    durable.destroy(path)
