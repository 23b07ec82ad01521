"""Carrying out what is open: batches through stages, gate and commit; after a kill, on from there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from curerec.errors import CurerecError, StorageError
from curerec.progress import Advance, Reporter, Silent
from curerec.requests import keys
from curerec.requests.commit import Plan, finish, prepare, recover
from curerec.requests.database import transaction
from curerec.requests.gate import Decision, decide, used_up
from curerec.requests.ledger import now
from curerec.requests.lock import runner
from curerec.requests.stages import EngineFor, Job, run_stages
from curerec.requests.store import Store
from curerec.requests.table import Entry

RETRAIN = "retrain"
CONTROL_SHARE = 0.1  # of rows that came in later, when a retrain takes them up
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
    """

    batch: str
    requests: tuple[str, ...]
    committed: bool
    reasons: tuple[str, ...]
    version: str


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
        recover(store)
        begun, tried, out = _begun(store, method, seed), set[str](), list[Done]()
        while True:
            batch = (
                begun.pop(0)
                if begun
                else _next(store, method, seed, each=each, skip=tried, empty=retrain and not out)
            )
            if batch is None:
                return out
            out.append(_carry_out(store, engine, batch, method, seed, reporter or Silent()))
            tried |= set(out[-1].requests)


def _begun(store: Store, method: str, seed: int) -> list[str]:
    """Batches that a killed run left; those of another method or version are given up."""
    found = []
    for row in store.db.execute(
        "SELECT * FROM batch WHERE state = 'running' ORDER BY created, id"
    ).fetchall():
        if (row["method"], row["seed"], row["version_before"]) == (method, seed, store.version):
            found.append(row["id"])
            continue
        with transaction(store.db) as db:
            db.execute("UPDATE batch SET state = 'abandoned' WHERE id = ?", (row["id"],))
            db.execute(
                "UPDATE request SET state = 'open' WHERE batch = ? AND state = 'running'", (row["id"],)
            )
    return found


def _next(store: Store, method: str, seed: int, *, each: bool, skip: set[str], empty: bool) -> str | None:
    """The next batch of what waits; the same requests under the same conditions are the same batch."""
    with transaction(store.db) as db:
        rows = db.execute(
            "SELECT id FROM request WHERE state IN ('open', 'held') "
            "ORDER BY coalesce(due, '9999'), received, id"
        ).fetchall()
        waiting = [row["id"] for row in rows if row["id"] not in skip][: 1 if each else None]
        if not waiting and not empty:
            return None
        parts = ("batch", method, str(seed), store.version, *sorted(waiting))
        name = f"b-{keys.tag(store.ledger.key, *parts)[:16]}"
        db.execute(
            "INSERT INTO batch (id, created, method, seed, state, version_before, data_before) "
            "VALUES (?, ?, ?, ?, 'running', ?, ?) ON CONFLICT (id) DO UPDATE SET state = 'running'",
            (name, now(), method, seed, store.version, store.ledger.meta("data")),
        )
        for request in waiting:
            db.execute("UPDATE request SET state = 'running', batch = ? WHERE id = ?", (name, request))
        store.ledger.tell("batch", "started", batch=name, done=0, total=5)
        return name


def _carry_out(
    store: Store, engine: EngineFor, batch: str, method: str, seed: int, reporter: Reporter
) -> Done:
    rows = store.db.execute(
        "SELECT id, kind FROM request WHERE batch = ? AND state = 'running' ORDER BY id", (batch,)
    ).fetchall()
    requests = {row["id"]: (row["kind"], store.ledger.entries(row["id"])) for row in rows}
    try:
        reasons = _try(store, engine, batch, requests, method, seed, reporter)
    except StorageError:
        raise  # the disk, not the request: the next run goes on with this batch
    except CurerecError as error:
        reasons = (str(error),)
    if reasons:
        with transaction(store.db) as db:
            text = "; ".join(reasons)
            db.execute("UPDATE batch SET state = 'held', detail = ? WHERE id = ?", (text, batch))
            db.execute(
                "UPDATE request SET state = 'held', detail = ? WHERE batch = ? AND state = 'running'",
                (text, batch),
            )
            store.ledger.tell("batch", f"held: {text}", batch=batch)
    return Done(batch, tuple(requests), not reasons, reasons, store.version)


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
    table = store.table()
    if method == RETRAIN:
        table = table.taken_up(control_share=CONTROL_SHARE, seed=seed)
    deleted, items = np.zeros(len(table.data), bool), []
    for kind, entries in requests.values():
        blocked = {r["tag"] for r in store.db.execute("SELECT tag FROM block WHERE kind = ?", (kind,))}
        if any(
            not table.has(kind, e) and keys.block_tag(store.ledger.key, kind, e) not in blocked
            for e in entries
        ):
            return ("an id of it is not in the data any more, and no request deleted it",)
        deleted |= table.rows(kind, entries)
        items += [entry[0] for entry in entries] if kind == "items" else []
    targets = deleted & (table.part == 1)
    counts = {
        "rows_deleted": int(deleted.sum()),
        "training_rows": int((deleted & table.trained).sum()),
        "training_targets": int(targets.sum()),
        "public_rows": int((deleted & table.public).sum()),
    }
    answers: dict[str, dict[str, Any]] = {}
    decision: Decision | None = None
    if counts["training_rows"] or method == RETRAIN:
        if method != RETRAIN:
            if spent := used_up(store.policy, store.drift()):
                return (spent,)
            if not np.isin(table.split.train.target, np.flatnonzero(deleted)).any():
                return (ONLY_HISTORIES,)
        kinds = {kind for kind, _ in requests.values()}
        job = Job(
            store.version_folder(),
            table,
            deleted,
            method,
            seed,
            store.ledger.meta("base"),
            kinds.pop() if len(kinds) == 1 else "interactions",
            sum(len(entries) for _, entries in requests.values()),
            f"keyed:{batch}",
            _Told(store, batch, reporter),
        )
        answers = run_stages(store, batch, engine(job))
        decision = decide(store.policy, answers["verdict"], store.drift(), retrained=method == RETRAIN)
        if not decision.promoted:
            return decision.reasons
    plan = Plan(
        batch,
        requests,
        table,
        table.without(deleted, items) if deleted.any() else table,
        counts,
        answers,
        decision,
        method,
        seed,
        tuple(_limits(counts, decision, answers, method)),
    )
    prepare(store, plan)
    finish(store, batch)
    return ()


def _limits(
    counts: dict[str, int], decision: Decision | None, answers: dict[str, dict[str, Any]], method: str
) -> list[str]:
    found = []
    if counts["public_rows"]:
        found.append(
            f"{counts['public_rows']} of the deleted rows were in the pre-training of the base model, which "
            "keeps what it learnt from them."
        )
    only = counts["training_rows"] - counts["training_targets"]
    if only > 0 and method != RETRAIN and answers:
        found.append(
            f"{only} of the deleted rows were no training targets, but stood in histories of training "
            "prompts; the measurements do not look at them."
        )
    if not answers:
        found.append("No training row was deleted: the fine-tuned weights did not change.")
    if method == RETRAIN and answers:
        found.append(
            "The new version was trained without the deleted rows; its membership is not a condition."
        )
    elif decision is not None and answers["verdict"]["verdict"]["verified"] is None:
        found.append("Not every check could be judged; the operator's policy accepts that.")
    return found


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
