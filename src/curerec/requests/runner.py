"""Carrying out what is open: batches through stages, gate and commit; after a kill, on from there."""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curerec.data.output import WRITING
from curerec.errors import CurerecError, DataError, RequestError, StorageError
from curerec.progress import Advance, Reporter, Silent
from curerec.requests import keys
from curerec.requests.commit import Counts, Plan, finish, prepare
from curerec.requests.database import transaction
from curerec.requests.gate import Decision, decide, used_up
from curerec.requests.ledger import now
from curerec.requests.limits import counts_of, limits_of
from curerec.requests.lock import runner
from curerec.requests.recovery import clear_work, recover
from curerec.requests.retain_sides import list_retain_sides
from curerec.requests.stages import RETRAIN, EngineFor, Job, run_stages
from curerec.requests.store import Store
from curerec.requests.table import Entry, Table

CONTROL_SHARE = 0.1  # of rows that came in later, when a retrain takes them up
MOST_BROKEN = 15  # a batch, its halves, quarters and eighths: if all break off, something else is wrong
ONLY_HISTORIES = (
    "the deleted rows are no training targets, but stood in histories: only a retrain takes them out; "
    "run `curerec request run --retrain`"
)


@dataclass(frozen=True)
class Done:
    """What became of a batch.

    Attributes:
        batch: its id.
        requests: their ids.
        committed: promoted; if not, the requests are held and the version in force stays.
        reasons: why not.
        version: in force afterwards.
        broke: it broke off, other than being refused; without some of its requests it might not.
    """

    batch: str
    requests: tuple[str, ...]
    committed: bool
    reasons: tuple[str, ...]
    version: str
    broke: bool = False


def run(
    store: Store,
    engine: EngineFor,
    *,
    each: bool = False,
    method: str | None = None,
    seed: int | None = None,
    retrain: bool = False,
    reporter: Reporter | None = None,
) -> list[Done]:
    """Carry out all waiting requests, as one batch or each by itself; first what a killed run began.

    A batch that breaks off is carried out in halves, and those that do again, until what breaks it is alone:
    one request holds nobody else up. Where each of fifteen breaks off, it is none of single requests.

    Args:
        store: opened.
        engine: makes what carries out the stages.
        each: a batch a request.
        method, seed: instead of the policy's.
        retrain: train anew without the deleted rows; also where no request waits.
        reporter: told of progress, beside the ledger's events.

    Raises:
        RefusedError: another run is at work.
        StorageError: the disk refused; the same command goes on later.
    """
    method = RETRAIN if retrain else method or store.policy.method
    seed = store.policy.seed if seed is None else seed
    with runner(store.lock):
        store.check_signing()
        recover(store)
        begun, tried, out = _begun(store, method, seed), set[str](), list[Done]()

        def carry(batch: str) -> Done:
            done = _carry_out(store, engine, batch, method, seed, reporter or Silent())
            out.append(done)
            tried.update(done.requests)
            return done

        def halved(whole: Done) -> None:
            broken, n, through = [whole], 1, False
            while broken and (through or n < MOST_BROKEN):
                names = broken.pop(0).requests
                at = len(names) // 2
                for half in filter(None, (names[:at], names[at:] if at else ())):
                    batch = _next(store, method, seed, among=half)
                    if batch is not None:  # not cancelled meanwhile
                        done = carry(batch)
                        n, through = n + 1, through or not done.broke
                        broken += [done] * done.broke

        while True:
            if begun:
                batch: str | None = begun.pop(0)
            else:
                batch = _next(store, method, seed, each=each, skip=tried, empty=retrain and not out)
            if batch is None:
                clear_work(store)  # of requests that were cancelled meanwhile
                return out
            if (done := carry(batch)).broke:
                halved(done)


def _begun(store: Store, method: str, seed: int) -> list[str]:
    """Batches that a killed run left; those of another method, policy, version or table are given up."""
    found = []
    for row in store.db.execute(
        "SELECT * FROM batch WHERE state = 'running' ORDER BY created, id"
    ).fetchall():
        wanted = (method, seed, store.policy.stage_settings, store.version, store.ledger.meta("data"))
        if tuple(row[k] for k in ("method", "seed", "settings", "version_before", "data_before")) == wanted:
            found.append(row["id"])
            continue
        with transaction(store.db) as db:
            db.execute("UPDATE batch SET state = 'abandoned' WHERE id = ?", (row["id"],))
            db.execute(
                "UPDATE request SET state = 'open' WHERE batch = ? AND state = 'running'", (row["id"],)
            )
    return found


def _next(
    store: Store,
    method: str,
    seed: int,
    *,
    each: bool = False,
    skip: Collection[str] = (),
    among: Collection[str] | None = None,
    empty: bool = False,
) -> str | None:
    """The next batch of what waits, or of these alone; the same under the same conditions are the same batch.

    Requests that only a retrain can carry out make a batch of their own: they hold nobody else up, and no
    measurement of another's rows stands in their record.
    """
    data = store.ledger.meta("data") or ""
    apart = _only_histories(store) if method != RETRAIN and not each and among is None else set()
    with transaction(store.db) as db:
        rows = db.execute(
            "SELECT id FROM request WHERE state IN ('open', 'held') "
            "ORDER BY coalesce(due, '9999'), received, id"
        ).fetchall()
        left = [row["id"] for row in rows if row["id"] not in skip and (among is None or row["id"] in among)]
        waiting = left[:1] if each else [name for name in left if name not in apart] or left
        if not waiting and not empty:
            return None
        settings = store.policy.stage_settings
        parts = ["batch", method, str(seed), settings, store.version, data, *sorted(waiting)]
        while True:
            name = f"b-{keys.tag(store.ledger.key, *parts)[:16]}"
            row = db.execute("SELECT decided FROM batch WHERE id = ?", (name,)).fetchone()
            if row is None or row["decided"] is None:
                break
            parts.append("again")  # an empty one was carried out under the same conditions, before a rollback
        db.execute(
            "INSERT INTO batch (id, created, method, seed, settings, state, version_before, data_before) "
            "VALUES (?, ?, ?, ?, ?, 'running', ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET state = 'running', data_before = excluded.data_before",
            (name, now(), method, seed, settings, store.version, data),
        )
        for request in waiting:
            db.execute(
                "UPDATE request SET state = 'running', batch = ?, detail = NULL WHERE id = ?", (name, request)
            )
        store.ledger.tell("batch", "started", batch=name, done=0, total=5)
        return name


def _only_histories(store: Store) -> set[str]:
    """Waiting requests whose rows stood in histories of training prompts and were no training targets."""
    rows = store.db.execute("SELECT id, kind FROM request WHERE state IN ('open', 'held')").fetchall()
    if not rows:
        return set()
    table, found = store.table(), set()
    for row in rows:
        deleted = table.rows(row["kind"], store.ledger.entries(row["id"]))
        if (deleted & table.trained).any() and not _touches_targets(table, deleted):
            found.add(row["id"])
    return found


def _touches_targets(table: Table, deleted: np.ndarray) -> bool:
    return bool(deleted[table.split.train.target].any())


def _carry_out(
    store: Store, engine: EngineFor, batch: str, method: str, seed: int, reporter: Reporter
) -> Done:
    rows = store.db.execute(
        "SELECT id, kind FROM request WHERE batch = ? AND state = 'running' ORDER BY id", (batch,)
    ).fetchall()
    requests = {row["id"]: (row["kind"], store.ledger.entries(row["id"])) for row in rows}
    broken, broke = True, False
    try:
        reasons = _try(store, engine, batch, requests, method, seed, reporter)
        broken = False
    except Exception as error:
        if _of_the_disk(error) or _decided(store, batch):
            raise  # the next run goes on with this batch
        # One request that breaks a stage must not keep all others waiting.
        broke = isinstance(error, RequestError | DataError) or not isinstance(error, CurerecError)
        reasons = (str(error) if isinstance(error, CurerecError) else _unexpected(error),)
    if reasons:
        with transaction(store.db) as db:
            text = "; ".join(reasons)
            db.execute("UPDATE batch SET state = 'held', detail = ? WHERE id = ?", (text, batch))
            db.execute(
                "UPDATE request SET state = 'held', detail = ? WHERE batch = ? AND state = 'running'",
                (text, batch),
            )
            db.execute("DELETE FROM event WHERE batch = ? AND kind = 'progress'", (batch,))
            store.ledger.tell("batch", f"held: {text}", batch=batch)
        if broken:
            recover(store)  # it may have been cut off between two steps
    return Done(batch, tuple(requests), not reasons, reasons, store.version, broke)


def _of_the_disk(error: Exception) -> bool:
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in WRITING)


def _decided(store: Store, batch: str) -> bool:
    state = store.db.execute("SELECT state FROM batch WHERE id = ?", (batch,)).fetchone()["state"]
    return state == "committing"


def _unexpected(error: Exception) -> str:
    """What and where, without the error's own text: it could quote what was handed in."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"a stage broke off ({type(error).__name__} at {place}); the next run tries it again"


def _try(
    store: Store,
    engine: EngineFor,
    batch: str,
    requests: dict[str, tuple[str, list[Entry]]],
    method: str,
    seed: int,
    reporter: Reporter,
) -> tuple[str, ...]:
    """Reasons for not committing; empty: committed."""
    seen = table = store.table()
    if method == RETRAIN:
        table = table.taken_up(control_share=CONTROL_SHARE, seed=seed)
    deleted, items, own = np.zeros(len(table.data), bool), [], {}
    for name, (kind, entries) in requests.items():
        # Entries were in the table when the request came in; of those that are not, no row is left.
        rows = table.rows(kind, entries)
        own[name] = counts_of(seen, rows, int((~table.has(kind, entries)).sum()))
        deleted |= rows
        items += [entry[0] for entry in entries] if kind == "items" else []
    counts = counts_of(seen, deleted, sum(one["ids_absent"] for one in own.values()))
    answers: dict[str, dict[str, Any]] = {}
    decision: Decision | None = None
    if counts["training_rows"] or method == RETRAIN:
        if method != RETRAIN:
            if spent := used_up(store.policy, store.drift()):
                return (spent,)
            if not _touches_targets(table, deleted):
                return (ONLY_HISTORIES,)
        named = {(kind, e) for kind, entries in requests.values() for e in _there(table, kind, entries)}
        kinds = {kind for kind, _ in named}
        job = Job(
            store.version_folder(),
            table,
            deleted,
            method,
            seed,
            store.ledger.meta("base"),
            kinds.pop() if len(kinds) == 1 else None,
            len(named),
            f"keyed:{batch}",
            _Told(store, batch, reporter),
            store.policy.keep_answers,
            tuple(items),
            store.policy.recipe,
        )
        answers = run_stages(store, batch, engine(job))
        list_retain_sides(store)
        decision = decide(store.policy, answers["verdict"], store.drift(), retrained=method == RETRAIN)
        if not decision.promoted:
            return decision.reasons
    whole: tuple[str | None, Counts] = (None, counts)
    plan = Plan(
        batch,
        requests,
        table,
        table.without(deleted, items) if deleted.any() else None,
        counts,
        own,
        answers,
        decision,
        method,
        seed,
        {name: limits_of(some, counts, decision, answers, method) for name, some in (*own.items(), whole)},
    )
    prepare(store, plan)
    finish(store, batch)
    return ()


def _there(table: Table, kind: str, entries: list[Entry]) -> list[Entry]:
    """Those of which a row is left; requests overlap, and one may have been carried out meanwhile."""
    return [entry for entry, has in zip(entries, table.has(kind, entries), strict=True) if has]


class _Told:
    """A reporter that also writes the ledger's events, once a second at most."""

    def __init__(self, store: Store, batch: str, inner: Reporter) -> None:
        self.store, self.batch, self.inner = store, batch, inner
        self.last = 0.0

    def stage(self, name: str) -> Advance:
        advance = self.inner.stage(name)

        def both(done: int, total: int) -> None:
            advance(done, total)
            if time.monotonic() - self.last >= 1:
                self.last = time.monotonic()
                with transaction(self.store.db):
                    self.store.ledger.tell("progress", name, batch=self.batch, done=done, total=total)

        return both
