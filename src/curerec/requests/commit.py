"""The commit: all is put beside what is in force, one transaction decides, the rest is done or done again.

Before the transaction nothing that anybody reads has changed; after it :func:`finish` can be repeated from
any point, by this process or the next. It writes the records' files, moves ``current``, and then destroys.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from curerec.data import durable
from curerec.data.edited import Edited
from curerec.recommender import manifest, stored_answers, waypoints
from curerec.reports.html import write_report
from curerec.reports.schema import write_record
from curerec.requests import chain, keys
from curerec.requests import table as tables
from curerec.requests.database import forget_pages, require_rewrite, transaction
from curerec.requests.gate import Decision
from curerec.requests.ledger import now
from curerec.requests.stages import ADAPTER
from curerec.requests.store import CURRENT, Store
from curerec.requests.table import Entry, Table

OLD = "old"  # meta: what the last decision said becomes of versions with forgotten influence


class Counts(TypedDict):
    """Rows that a request deletes.

    ``rows_deleted`` of the table; ``training_rows`` of them that the model saw, as targets or in histories;
    ``training_targets``, as targets; ``public_rows`` that only the base was pre-trained on; ``ids_absent``:
    ids that no row is left of, because earlier requests deleted them all.
    """

    rows_deleted: int
    training_rows: int
    training_targets: int
    public_rows: int
    ids_absent: int


@dataclass(frozen=True)
class Plan:
    """What a batch changes.

    Attributes:
        batch: its id.
        requests: id to what it names, and of which kind.
        deleted_items: titles that go with them.
        table: the stored one.
        edited: what it is to be; None: nothing of it is deleted.
        counts: rows of the whole batch, by how they mattered; see :class:`Counts`.
        own: the same of each request alone; a row that two of them name counts in both.
        answers: of the stages; empty where no training row was touched.
        decision: of the gate; None likewise.
        method, seed: of the batch.
        limits: sentences for each request's record; of the batch under None.
    """

    batch: str
    requests: dict[str, tuple[str, list[Entry]]]
    table: Table
    edited: Edited | None
    counts: Counts
    own: dict[str, Counts]
    answers: dict[str, dict[str, Any]]
    decision: Decision | None
    method: str
    seed: int
    limits: dict[str | None, list[str]]


def prepare(store: Store, plan: Plan) -> None:
    """Put new version, table, report and keys in place, and decide in one transaction.

    Raises:
        StorageError: nothing was decided; the next run does it again.
    """
    changed = bool(plan.answers)
    old = store.version
    version = plan.answers["update"]["adapter"] if changed else old
    work = store.root / "work" / plan.batch
    if changed:
        target = store.root / "versions" / version
        if not target.exists():
            durable.move(work / ADAPTER, target)
        store.version_folder(version)
    data = tables.save(plan.table, store.root / "data", plan.edited)
    subjects = {"adapter": version, **_report(store, plan)}
    finished = now()
    links, before = [], store.head()
    artefacts = _artefacts(store, plan, version, data)
    names: list[str | None] = list(plan.requests) or [None]
    for name in names:
        predicate = _predicate(store, plan, name, old, version, data, finished, artefacts)
        action = "retrain" if name is None else "deletion"
        before = chain.link(
            action, before, subjects, predicate, key=store.sign_key, request=name, batch=plan.batch
        )
        links.append(before)
    ledger = store.ledger
    with transaction(store.db) as db:
        if changed:
            spent = plan.decision or Decision(True, (), 0.0, 0.0)
            if plan.counts["training_rows"]:
                db.execute("UPDATE version SET state = 'unlawful' WHERE state IN ('lawful', 'quarantined')")
            db.execute(
                "INSERT INTO version VALUES (?, ?, ?, 'lawful', ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET state = 'lawful', batch = excluded.batch, "
                "drift = excluded.drift, auc_drop = excluded.auc_drop",
                (version, finished, plan.batch, spent.drift, spent.auc_drop),
            )
        for kind, entries in plan.requests.values():
            tags = [(keys.block_tag(ledger.key, kind, entry), kind) for entry in entries]
            db.executemany("INSERT OR IGNORE INTO block VALUES (?, ?)", tags)
        for one in links:
            store.append(one)
        ledger.set_meta("version", version)
        ledger.set_meta("data", data)
        ledger.set_meta(OLD, store.policy.old)
        db.execute(
            "UPDATE batch SET state = 'committing', stage = 'commit', version_after = ?, data_after = ?, "
            "decided = ? WHERE id = ?",
            (version, data, finished, plan.batch),
        )
        ledger.tell("stage", "commit", batch=plan.batch, done=4, total=5)


def finish(store: Store, batch: str) -> None:
    """Everything after the decision; may be repeated from any point.

    Raises:
        StorageError: a disk refused; the next run goes on.
    """
    store.write_records()
    durable.point(store.root / CURRENT, f"versions/{store.version}")
    destroy_unlawful(store)
    destroy_artefacts(store)
    keep = store.ledger.meta("data")
    for path in (store.root / "data").iterdir():
        if path.name != keep:
            durable.destroy(path)
    for path in (store.root / "work").iterdir():
        durable.destroy(path)
    with transaction(store.db) as db:
        decided = db.execute("SELECT decided FROM batch WHERE id = ?", (batch,)).fetchone()["decided"]
        db.execute(
            "DELETE FROM subject WHERE request IN "
            "(SELECT id FROM request WHERE batch = ? AND state = 'running')",
            (batch,),
        )
        db.execute(
            "UPDATE request SET state = 'committed', finished = ?, detail = NULL, reason = NULL "
            "WHERE batch = ? AND state = 'running'",
            (decided, batch),
        )
        # Older results hold what was forgotten now; they are gone with the work folder.
        db.execute("DELETE FROM stage WHERE batch != ?", (batch,))
        db.execute("UPDATE batch SET state = 'abandoned' WHERE state = 'held'")
        db.execute("UPDATE batch SET state = 'done', stage = NULL WHERE id = ?", (batch,))
        # Unkeyed names of tables that held what is deleted now.
        db.execute("UPDATE batch SET data_before = NULL, data_after = NULL")
        db.execute("DELETE FROM event WHERE kind = 'progress'")
        require_rewrite(db)
        store.ledger.tell("batch", "committed", batch=batch, done=5, total=5)
    forget_pages(store.db)


def destroy_unlawful(store: Store) -> None:
    """Destroy or quarantine every version with influence that was to be forgotten."""
    policy = store.ledger.meta(OLD) or store.policy.old  # as decided: the record says what becomes of them
    for row in store.db.execute("SELECT id FROM version WHERE state = 'unlawful'").fetchall():
        folder = store.root / "versions" / row["id"]
        aside = store.root / "quarantine" / row["id"]
        if policy == "destroy":
            durable.destroy(folder)
            durable.destroy(aside)
        elif folder.exists():  # else it is aside already, since an earlier deletion or since a kill
            durable.destroy(aside)
            durable.move(folder / manifest.MANIFEST, folder / f"{manifest.MANIFEST}.quarantined")
            durable.move(folder, aside)
        with transaction(store.db) as db:
            state = "destroyed" if policy == "destroy" else "quarantined"
            db.execute("UPDATE version SET state = ? WHERE id = ?", (state, row["id"]))


def destroy_artefacts(store: Store) -> None:
    """Destroy or quarantine what the operator registered outside of the store."""
    rows = store.db.execute("SELECT * FROM artefact WHERE state = 'there' AND policy != 'list'").fetchall()
    for row in rows:
        path = Path(row["path"])
        if row["policy"] == "destroy":
            durable.destroy(path)
        elif path.exists():
            aside = _free(path.with_name(f"{path.name}.quarantined"))
            durable.move(path, aside)
            with contextlib.suppress(OSError):
                os.chmod(aside, 0)
        with transaction(store.db) as db:
            state = "destroyed" if row["policy"] == "destroy" else "quarantined"
            db.execute("UPDATE artefact SET state = ? WHERE id = ?", (state, row["id"]))


def _free(path: Path) -> Path:
    """This path or, where something is there, the first numbered one beside it where nothing is."""
    for name in itertools.chain([path.name], (f"{path.name}-{k}" for k in itertools.count(2))):
        found = path.with_name(name)
        if not os.path.lexists(found):
            return found
    raise AssertionError("unreachable")


def _report(store: Store, plan: Plan) -> dict[str, str]:
    """Write the batch's report; returns name to sha256 of its files."""
    content = plan.answers.get("verdict", {}).get("report")
    if content is None:
        return {}
    decided = {"promoted": True, "notes": plan.limits[None]}
    content = {**content, "verdict": {**content.get("verdict", {}), **decided}}
    folder = store.root / "reports" / plan.batch
    with durable.storing("report"):
        folder.mkdir(mode=0o700, exist_ok=True)
        durable.sync(folder.parent)
    write_record(content, folder / "record.json")
    write_report(content, folder / "report.html")
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("record.json", "report.html")
    }


#: What the policy ``keep_answers`` hands on from version to version.
KEPT_ANSWERS = "answers of the recommender as trained to the training examples that are left"


def _artefacts(store: Store, plan: Plan, version: str, data: str) -> list[dict[str, Any]]:
    """What holds influence of the deleted rows, and what becomes of it; nothing that stays as it is."""
    done = {"destroy": "destroyed", "quarantine": "quarantined", "list": "listed, not touched"}
    found: list[dict[str, Any]] = []
    if plan.answers and plan.counts["training_rows"]:
        rows = store.db.execute("SELECT id FROM version WHERE state IN ('lawful', 'quarantined') ORDER BY id")
        for name in (row["id"] for row in rows if row["id"] != version):
            found.append({"kind": "adapter", "sha256": name, "done": done[store.policy.old]})
            folders = [store.root / place / name for place in ("versions", "quarantine")]
            files = [folder / file for folder in folders for file in stored_answers.DIGESTS]
            if any(file.exists() for file in files):  # and goes with the folder
                kind = "stored answers to the training examples"
                found.append({"kind": kind, "adapter": name, "done": done[store.policy.old]})
            if any((folder / waypoints.FILE).exists() for folder in folders):
                kind = "waypoints of the training"
                found.append({"kind": kind, "adapter": name, "done": done[store.policy.old]})
    if plan.answers.get("update", {}).get("answers_kept"):
        found.append({"kind": KEPT_ANSWERS, "adapter": version, "done": "kept in it, by the policy"})
    if plan.answers:
        found.append({"kind": "circuit, groups, update and verdict of the run", "done": "destroyed"})
    if data != store.ledger.meta("data"):
        found.append({"kind": "stored table before the request", "done": "destroyed"})
    for row in store.db.execute("SELECT * FROM artefact WHERE state = 'there' ORDER BY id").fetchall():
        there = os.path.lexists(row["path"])
        if there or row["policy"] != "list":
            what = done[row["policy"]] if there else "was gone already"
            found.append({"kind": f"{row['kind']} outside of the store", "done": what})
    return found


def _predicate(
    store: Store,
    plan: Plan,
    name: str | None,
    old: str,
    version: str,
    data: str,
    finished: str,
    artefacts: list[dict[str, Any]],
) -> dict[str, Any]:
    """The record of one request, without what every record has."""
    judged = plan.answers.get("verdict", {})
    asked: dict[str, Any] | None = None
    counts = plan.counts
    digests: dict[str, Any] = {"before": store.data_digest(), "after": store.data_digest(data)}
    if name is not None:
        kind, entries = plan.requests[name]
        counts = plan.own[name]
        row = store.ledger.get(name)
        key = keys.make(store.root / "keys", name)
        asked = {
            "id": name,
            "kind": kind,
            "n_ids": len(entries),
            "received": row["received"],
            "due": row["due"],
            "pseudonyms": sorted(keys.pseudonym(key, kind, entry) for entry in entries),
        }
        # Keyed: who has the table of now could else test guesses of what is missing from the one before.
        digests = {
            "before": {"hmac_sha256": keys.tag(key, "data", store.ledger.meta("data") or "")},
            "after": {"hmac_sha256": keys.tag(key, "data", data)},
        }
    times = store.db.execute("SELECT name, time_s FROM stage WHERE batch = ?", (plan.batch,)).fetchall()
    decision = plan.decision
    return {
        "request": asked,
        "batch": {"id": plan.batch, "n_requests": len(plan.requests), **plan.counts},
        "finished": finished,
        "algorithm": {
            "name": plan.method if plan.answers else "none: no training row was touched",
            "seed": plan.seed,
            "policy_sha256": store.policy.digest,
            **judged.get("algorithm", {}),
        },
        "base": judged.get("base"),
        "data": {**digests, **counts},
        "version": {"before": old, "after": version},
        "stages": [{"name": row["name"], "time_s": row["time_s"]} for row in times],
        "verdict": judged.get("verdict"),
        "measurements": judged.get("measurements", []),
        "drift": None
        if decision is None
        else {
            "step": judged["drift"],
            "spent": {"distance": decision.drift, "auc_drop": decision.auc_drop},
            "budget": {"distance": store.policy.drift_budget, "auc_drop": store.policy.auc_budget},
        },
        "artefacts": artefacts,
        "versions": judged.get("versions", {}),
        "machine": judged.get("machine", {}),
        "limits": plan.limits[name],
    }
