"""What an operator does between requests: roll back, take in new rows, shred keys, register artefacts."""

from __future__ import annotations

import contextlib
import datetime
import os
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curerec.data import durable
from curerec.data.edited import adding, keeping
from curerec.errors import CurerecError, DataError, RefusedError, RequestError
from curerec.interactions import Interactions
from curerec.requests import chain, keys
from curerec.requests import table as tables
from curerec.requests.database import forget_pages, require_rewrite, transaction
from curerec.requests.ledger import now
from curerec.requests.lock import held, runner
from curerec.requests.recovery import clear_work, recover
from curerec.requests.store import CURRENT, Store
from curerec.requests.table import Entry

LOOK_S = 0.1  # a cancellation waits for the lock: a look by `held` takes it for an instant


def versions(store: Store) -> list[dict[str, Any]]:
    """Versions with their state; only a lawful one can be rolled back to."""
    rows = store.db.execute("SELECT id, created, state, drift, auc_drop FROM version ORDER BY created, id")
    return [{**dict(row), "current": row["id"] == store.version} for row in rows.fetchall()]


def _last_in_force(store: Store) -> dict[str, int]:
    """Version to the number of the last record that put it in force; a clock may have been set back."""
    return {version: one.sequence for one in store.links() if (version := chain.version_of(one))}


def rollback(store: Store, version: str | None = None) -> str:
    """Serve an earlier version that no later request has made unlawful.

    Args:
        store: opened.
        version: its content hash or a beginning of it; None: the latest lawful one before.

    Returns:
        The version now in force.

    Raises:
        RefusedError: there is none, or it holds what was to be forgotten.
        ModelError: it is damaged.
    """
    with runner(store.lock):
        store.check_signing()
        recover(store)
        others = [v for v in versions(store) if v["state"] == "lawful" and not v["current"]]
        if version is not None:
            others = [v for v in others if v["id"].startswith(version)]
        if not others or (version is not None and len(others) > 1):
            what = "there is no such lawful version" if len(others) < 2 else "names several versions"
            mend = "`curerec request status` lists them; versions with forgotten influence cannot come back"
            raise RefusedError(what, where="rollback", mend=mend)
        at, old = _last_in_force(store), store.version
        target = max(others, key=lambda one: at.get(one["id"], 0))["id"]
        store.version_folder(target)
        predicate = {"version": {"before": old, "after": target}, "finished": now()}
        one = chain.link("rollback", store.head(), {"adapter": target}, predicate, key=store.sign_key)
        with transaction(store.db):
            store.append(one)
            store.ledger.set_meta("version", target)
            store.ledger.tell("version", "rolled back")
        store.write_records()
        durable.point(store.root / CURRENT, f"versions/{target}")
        return target


class Ingested(NamedTuple):
    """Rows that an ingest added, left out as deleted, and left as the table has them though they differ."""

    added: int
    refused: int
    differing: int


def ingest(store: Store, new: Interactions, *, skip: bool = False) -> Ingested:
    """Add rows to the stored table; what was deleted does not come back.

    Args:
        store: opened.
        new: rows; a pair that is in the table already is left as it is, with its rating and its time, since
            the model was trained on these.
        skip: leave out deleted rows instead of refusing all.

    Raises:
        RefusedError: deleted rows are among them.
        DataError: nothing new is among them.
    """
    with runner(store.lock):
        store.check_signing()
        recover(store)
        table, key = store.table(), store.ledger.key
        tags = {row["tag"] for row in store.db.execute("SELECT tag FROM block")}
        users, items = new.ratings["user"].to_pylist(), new.ratings["item"].to_pylist()
        barred = {
            "users": {u for u in set(users) if tags & _tags(key, "users", (u,))},
            "items": {i for i in set(items) if tags & _tags(key, "items", (i,))},
        }
        blocked = np.asarray(
            [
                u in barred["users"]
                or i in barred["items"]
                or bool(tags & _tags(key, "interactions", (u, i)))
                for u, i in zip(users, items, strict=True)
            ],
            dtype=bool,
        )
        if blocked.any() and not skip:
            what = f"{blocked.sum()} row(s) were deleted by a request and must not come back"
            raise RefusedError(
                what, where="ingest", mend="Remove them at their source, or use --skip-deleted"
            )
        at = table.rows_of_pairs(list(zip(users, items, strict=True)))
        there = at >= 0
        old, known = table.data, at[there]
        differs = there & ~blocked
        differs[there] &= (old.rating[known] != new.rating[there]) | (old.time[known] != new.time[there])
        keep, differing = ~blocked & ~there, int(differs.sum())
        if not keep.any():
            what = "holds no row that is new" + (
                f", and {differing} known with another rating or time" if differing else ""
            )
            raise DataError(what, where="ingest", mend="Nothing was changed")
        rated = np.zeros(len(new.item_ids), bool)
        rated[new.item_code[keep]] = True
        more = keeping(new, keep, new.titles.filter(pa.array(rated))).in_memory()
        name = tables.save(table, store.root / "data", adding(table.data, more))
        added, left = int(keep.sum()), int(blocked.sum())
        one = chain.link(
            "ingest",
            store.head(),
            {},
            {
                "rows_added": added,
                "rows_refused": left,
                "finished": now(),
                "data": {"before": store.data_digest(), "after": store.data_digest(name)},
            },
            key=store.sign_key,
        )
        with transaction(store.db):
            store.append(one)
            store.ledger.set_meta("data", name)
            store.ledger.tell("data", f"{added} rows added, {left} deleted ones kept out")
        recover(store)
        return Ingested(added, left, differing)


def _tags(key: bytes, kind: str, entry: Entry) -> set[str]:
    """What a deleted entry may have left: requests of before kept the Unicode form that they came in."""
    forms = {tuple(unicodedata.normalize(form, i) for i in entry) for form in ("NFC", "NFD")}
    return {keys.block_tag(key, kind, one) for one in forms}


def cancel(store: Store, request: str) -> None:
    """Take a waiting request back; what it names is erased from the ledger, and what a run left of it goes.

    Asked again, it goes on where it was cut off. Where a run is at work that removes the stages at its end.

    Raises:
        RefusedError: it is being carried out, or done.
        StorageError: a disk refused; once the request is cancelled the next run removes the rest.
    """
    store.ledger.cancel(request)
    # A run may take up any batch but one of a cancelled request, and looks at all of them.
    with contextlib.suppress(RefusedError), runner(store.lock, wait_s=LOOK_S):
        clear_work(store)


def shred(store: Store, request: str | None = None, *, today: str | None = None) -> list[str]:
    """Destroy the keys of records, so that their pseudonyms lead to nobody any more.

    Args:
        store: opened.
        request: of a committed or cancelled request; None: of all whose retention time is over.
        today: ``YYYY-MM-DD``, for tests.

    Returns:
        Ids of the requests.

    Raises:
        RefusedError: it is not done yet.
    """
    with runner(store.lock):
        store.check_signing()
        recover(store)
        if request is not None:
            row = store.ledger.get(request)
            if row["state"] not in ("committed", "cancelled"):
                raise RefusedError(
                    f"is {row['state']}: its key is still needed",
                    where=request,
                    mend="Carry it out or cancel it first",
                )
            chosen = [] if row["shredded"] else [request]
        else:
            day = datetime.date.fromisoformat(today) if today else datetime.datetime.now(datetime.UTC).date()
            kept = min(store.policy.retention_days, day.toordinal() - 1)  # there is no year 0
            last = datetime.date.fromordinal(day.toordinal() - kept).isoformat()
            rows = store.db.execute(
                "SELECT id FROM request WHERE state IN ('committed', 'cancelled') AND NOT shredded "
                "AND substr(finished, 1, 10) <= ? ORDER BY id",
                (last,),
            )
            chosen = [row["id"] for row in rows]
        links, before = [], store.head()
        for name in chosen:
            before = chain.link(
                "shred",
                before,
                {},
                # The key that named the table of now goes; this names it in its place.
                {"request": {"id": name}, "finished": now(), "data": {"after": store.data_digest()}},
                key=store.sign_key,
                request=name,
            )
            links.append(before)
        with transaction(store.db) as db:
            for one in links:
                store.append(one)
                db.execute(
                    "UPDATE request SET shredded = 1, content_key = NULL, reason = NULL WHERE id = ?",
                    (one.request,),
                )
            require_rewrite(db)
        for name in chosen:
            keys.destroy(store.root / "keys", name)
        store.write_records()
        forget_pages(store.db)
        return chosen


def register(store: Store, path: Path, *, kind: str, policy: str) -> None:
    """Have a cache, checkpoint, ... outside of the store listed, quarantined or destroyed at the next commit.

    Raises:
        RequestError: there is no such path, it holds the store or its base, or it could not be removed.
        RefusedError: a run is at work.
    """
    full, root = path.resolve(), store.root.resolve()
    if not full.exists() or root.is_relative_to(full) or full.is_relative_to(root):
        raise RequestError("is not there, or is part of the store", where="artefact", mend="Check the path")
    if policy != "list" and not os.access(full.parent, os.W_OK | os.X_OK):
        mend = "A commit that cannot remove it could not end; give the rights, or use --policy list"
        raise RequestError("could not be removed (no permission)", where="artefact", mend=mend)
    base = _base(store) if policy != "list" else None
    if base is not None and (base.is_relative_to(full) or full.is_relative_to(base)):
        mend = "Without it no version can be loaded; it is not changed by a request"
        raise RequestError("holds the base model of this store, or is of it", where="artefact", mend=mend)
    # Under the lock, so that what a commit destroys is what its record lists.
    with runner(store.lock):
        recover(store)  # a commit that was cut off after its decision destroys what its record lists
        with transaction(store.db) as db:
            db.execute(
                "INSERT INTO artefact (path, kind, policy) VALUES (?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE "
                "SET kind = excluded.kind, policy = excluded.policy, state = 'there'",
                (str(full), kind, policy),
            )


def _base(store: Store) -> Path | None:
    """Folder of the base model, where it is on this machine: named at `init`, or found by its name."""
    if (named := store.ledger.meta("base")) is not None:
        return Path(named).resolve()
    from curerec.recommender import bases, storage  # with all of the libraries for models

    try:
        card = storage.read_card(store.root / "versions" / store.version)
        return bases.resolve(card["base"]["name"], offline=True).resolve()
    except (CurerecError, LookupError, TypeError):
        return None


def status(store: Store) -> dict[str, Any]:
    """How a store stands; no id of a person is in it."""
    from curerec.requests.gate import used_up

    policy = store.read_policy()  # the next run's
    drift, auc_drop = store.drift()
    running = store.db.execute(
        "SELECT id, stage, created FROM batch WHERE state IN ('running', 'committing') ORDER BY created"
    ).fetchall()
    head = store.head()
    today = now()[:10]
    return {
        "version": store.version,
        "requests": store.ledger.counts(),
        "overdue": store.ledger.overdue(today),
        "running": held(store.lock),
        "batches": [dict(row) for row in running],
        "drift": {
            "distance": drift,
            "distance_budget": policy.drift_budget,
            "auc_drop": auc_drop,
            "auc_budget": policy.auc_budget,
        },
        "retrain_due": used_up(policy, (drift, auc_drop)),
        "records": 0 if head is None else head.sequence,
        "head": None if head is None else head.sha256,
        "versions": [one for one in versions(store) if one["state"] != "destroyed"],
    }
