"""The stages between request and commit, as the runner sees them: each leaves a file for a later run."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from curerec.data import durable
from curerec.data.output import WRITING
from curerec.errors import ModelError
from curerec.progress import Reporter, Silent
from curerec.recommender import manifest
from curerec.reports.schema import plain
from curerec.requests.database import transaction
from curerec.requests.store import Store
from curerec.requests.table import Table

STAGES = ("circuit", "groups", "update", "verdict")
ADAPTER = "adapter"
RETRAIN = "retrain"  # the method of a batch that trains anew


@dataclass(frozen=True)
class Job:
    """What the stages of one batch work on.

    Attributes:
        folder: of the version in force, checked.
        table: stored training table, deleted rows included.
        deleted: bool [n_rows].
        method, seed: which algorithm, and its random numbers.
        base: folder of the base model, if its name does not find it.
        kind, n_ids: of the request, for the report: None where it is of several kinds; entries of which a row
            is left, each once.
        pseudonym: stands for the request in the report.
        reporter: told of progress.
        keep_answers: of the policy.
        items: that are deleted as such, so that their titles go, too.
        recipe: of the policy.
    """

    folder: Path
    table: Table
    deleted: np.ndarray
    method: str
    seed: int
    base: str | None = None
    kind: str | None = "users"
    n_ids: int = 0
    pseudonym: str = ""
    reporter: Reporter = field(default_factory=Silent)
    keep_answers: bool = False
    items: tuple[str, ...] = ()
    recipe: str | None = None


class Engine(Protocol):
    """Carries out stages; made anew for each batch, loads models only once it must.

    Every answer is plain JSON values. The same job gives the same answers and the same adapter, bit by bit,
    whichever stages were taken from an earlier process.
    """

    def circuit(self) -> dict[str, Any]:
        """The core circuit."""
        ...

    def groups(self, circuit: dict[str, Any]) -> dict[str, Any]:
        """Roles of the modules."""
        ...

    def update(self, circuit: dict[str, Any], groups: dict[str, Any], out: Path) -> dict[str, Any]:
        """Write the unlearned recommender's files into the folder ``out``."""
        ...

    def verdict(self, before: dict[str, dict[str, Any]], adapter: Path) -> dict[str, Any]:
        """Judge the files in ``adapter``.

        Returns:
            ``verdict`` (of :func:`curerec.evaluation.verdict.verdict`), ``measurements``, ``drift``
            (``distance``, ``auc_drop``), ``about`` (algorithm, base, versions, ...), ``report`` or None.
        """
        ...


EngineFor = Callable[[Job], Engine]


def run_stages(store: Store, batch: str, engine: Engine) -> dict[str, dict[str, Any]]:
    """All stages of a batch; those that an earlier process finished are read, not repeated.

    Returns:
        Answers by stage. ``update`` holds ``adapter``, the content hash of ``work/<batch>/adapter``.

    Raises:
        CurerecError: a stage refused.
        StorageError: its answer could not be stored; the next run repeats that stage only.
    """
    work = store.root / "work" / batch
    with durable.storing("work folder"):
        work.mkdir(mode=0o700, exist_ok=True)
    done: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        answer = _stored(store, batch, work, name)
        if answer is None:
            _set_stage(store, batch, name)
            start = time.perf_counter()
            answer = plain(_call(engine, name, done, work))
            _store(store, batch, work, name, answer, time.perf_counter() - start)
        done[name] = answer
    return done


def _call(engine: Engine, name: str, done: dict[str, dict[str, Any]], work: Path) -> dict[str, Any]:
    if name == "circuit":
        return engine.circuit()
    if name == "groups":
        return engine.groups(done["circuit"])
    if name == "update":
        return _update(engine, done, work)
    return engine.verdict(done, work / ADAPTER)


def _update(engine: Engine, done: dict[str, dict[str, Any]], work: Path) -> dict[str, Any]:
    draft, adapter = work / f"{durable.TEMPORARY}adapter", work / ADAPTER
    durable.destroy(adapter)  # of a process that was killed before it could say so
    with durable.storing("work folder"):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
    try:
        answer = engine.update(done["circuit"], done["groups"], draft)
    except OSError as error:
        if error.errno not in WRITING:
            raise
        with durable.storing("new version"):
            raise
    with durable.storing("new version"):
        digest = manifest.seal(draft, where="new version")
    durable.publish(draft, adapter)
    return {**answer, "adapter": digest}


def _stored(store: Store, batch: str, work: Path, name: str) -> dict[str, Any] | None:
    row = store.db.execute("SELECT sha256 FROM stage WHERE batch = ? AND name = ?", (batch, name)).fetchone()
    if row is None:
        return None
    try:
        raw = (work / f"{name}.json").read_bytes()
        answer = json.loads(raw)
        if hashlib.sha256(raw).hexdigest() != row["sha256"]:
            return None
        if name == "update" and manifest.check(work / ADAPTER) != answer["adapter"]:
            return None
    except (OSError, ValueError, ModelError):
        return None
    return answer


def _set_stage(store: Store, batch: str, name: str) -> None:
    at = STAGES.index(name)
    with transaction(store.db):
        # What follows a stage that is done anew is done anew, too.
        store.db.execute(
            f"DELETE FROM stage WHERE batch = ? AND name IN ({', '.join('?' * len(STAGES[at:]))})",
            (batch, *STAGES[at:]),
        )
        store.db.execute("UPDATE batch SET stage = ? WHERE id = ?", (name, batch))
        store.ledger.tell("stage", name, batch=batch, done=at, total=len(STAGES) + 1)


def _store(store: Store, batch: str, work: Path, name: str, answer: dict[str, Any], time_s: float) -> None:
    raw = json.dumps(answer, sort_keys=True, allow_nan=False).encode()
    durable.write(work / f"{name}.json", raw)
    with transaction(store.db):
        store.db.execute(
            "INSERT INTO stage VALUES (?, ?, ?, ?)",
            (batch, name, hashlib.sha256(raw).hexdigest(), round(time_s, 3)),
        )
