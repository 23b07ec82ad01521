"""Requests in the ledger: added once, never lost, each with a state that only moves forward.

open -> running -> committed
  |        |
  |        +-> held (not verified, or only a retrain can do it; the next run takes it up again)
  +-> cancelled (may be opened again by adding it again)
"""

from __future__ import annotations

import datetime
import re
import secrets
import sqlite3
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curerec.errors import RefusedError, RequestError
from curerec.requests import keys
from curerec.requests.database import connect, forget_pages, require_rewrite, transaction
from curerec.requests.table import Entry

REQUEST_ID = re.compile(r"r-[0-9a-f]{16}")
STATES = ("open", "running", "held", "committed", "cancelled")
WAITING = ("open", "held")
MAX_IDS = 100_000
MAX_REASON = 500


@dataclass(frozen=True)
class Asked:
    """A request as it came in.

    Attributes:
        kind: ``users``, ``items`` or ``interactions``.
        entries: of it, in order, each once; kept in Unicode's form NFC.
        reason: free text; stays in the ledger, never in a record.
        due: date by which it must be done, ``YYYY-MM-DD``.
    """

    kind: str
    entries: tuple[Entry, ...]
    reason: str | None = None
    due: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("users", "items", "interactions"):
            raise RequestError(
                "does not say its kind", where="request", mend="Use users, items or interactions"
            )
        if not 0 < len(self.entries) <= MAX_IDS:
            what = "names nothing to delete" if not self.entries else f"names more than {MAX_IDS} ids"
            raise RequestError(what, where="request", mend="Name at least one id, or split it")
        width = 2 if self.kind == "interactions" else 1
        if any(len(e) != width or not all(isinstance(i, str) and i for i in e) for e in self.entries):
            raise RequestError(
                "an entry of it has an empty or missing id",
                where="request",
                mend="Fill it in; an interaction is USER,ITEM",
            )
        try:
            "".join((self.reason or "", *(i for e in self.entries for i in e))).encode()
        except UnicodeEncodeError:
            raise RequestError("a text of it is not Unicode", where="request", mend="Use UTF-8") from None
        # As ids of data are read: else the same request in another form would be another, and so its tags.
        one_form = (tuple(unicodedata.normalize("NFC", i) for i in entry) for entry in self.entries)
        object.__setattr__(self, "entries", tuple(one_form))
        if self.reason is not None and len(self.reason) > MAX_REASON:
            raise RequestError(
                f"its reason is longer than {MAX_REASON} characters", where="request", mend="Shorten it"
            )
        if self.due is not None:
            try:
                if datetime.date.fromisoformat(self.due).isoformat() != self.due:
                    raise ValueError
            except ValueError:
                raise RequestError(
                    "its due date is no date", where="request", mend="Write YYYY-MM-DD"
                ) from None


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def known_states(states: Iterable[str]) -> tuple[str, ...]:
    """The states, if requests can be in each.

    Raises:
        RequestError: one is none; it is not quoted.
    """
    wanted = tuple(states)
    if not set(wanted) <= set(STATES):
        raise RequestError("is unknown", where="state", mend=f"Use {', '.join(STATES[:-1])} or {STATES[-1]}")
    return wanted


class Ledger:
    """The requests of one store.

    Args:
        path: of the SQLite file.
        key: of the ledger, that recognises a request.
        looks: nothing will be changed, nor is an older schema brought up.
        thread_check: refuse use from another thread than the one that opened it.
    """

    def __init__(self, path: Path, key: bytes, *, looks: bool = False, thread_check: bool = True) -> None:
        self.path, self.key = path, key
        self.db: sqlite3.Connection = connect(path, looks=looks, thread_check=thread_check)

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def meta(self, key: str) -> str | None:
        """A value of the store's own state."""
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def set_meta(self, key: str, value: str) -> None:
        """Set one, inside of the caller's transaction or in one of its own."""
        self.db.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )

    def add(self, asked: Asked) -> tuple[str, bool]:
        """Take a request in; the same one again is the one that is there (the earlier due date counts).

        One that was cancelled is opened again, with both dates of its new arrival.

        Returns:
            (id, whether it is new). It is on disk when this returns.
        """
        return self.add_all([asked])[0]

    def add_all(self, many: Iterable[Asked]) -> list[tuple[str, bool]]:
        """Several requests in one transaction, so with one wait for the disk."""
        with transaction(self.db):
            return [self.add_inside(asked) for asked in many]

    def add_inside(self, asked: Asked) -> tuple[str, bool]:
        """As :meth:`add`, inside of the caller's transaction."""
        entries = tuple(dict.fromkeys(asked.entries))
        same = keys.content_key(self.key, asked.kind, entries)
        found = self.db.execute("SELECT id, state FROM request WHERE content_key = ?", (same,)).fetchone()
        if found is not None:
            if found["state"] not in ("committed", "cancelled"):  # what its record says of it stays true
                self.db.execute(
                    "UPDATE request SET due = min(coalesce(due, ?1), coalesce(?1, due)) WHERE id = ?2",
                    (asked.due, found["id"]),
                )
            if found["state"] == "cancelled":
                # Its dates are those of now: what was taken back with the old ones binds nobody.
                self.db.execute(
                    "UPDATE request SET state = 'open', received = ?, due = ?, finished = NULL, "
                    "batch = NULL, detail = NULL, reason = ? WHERE id = ?",
                    (now(), asked.due, asked.reason, found["id"]),
                )
                self._subjects(found["id"], entries)
                self.tell("request", "opened again", request=found["id"])
            return found["id"], False
        name = f"r-{secrets.token_hex(8)}"
        self.db.execute(
            "INSERT INTO request (id, content_key, kind, n_ids, reason, received, due, state) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 'open')",
            (name, same, asked.kind, len(entries), asked.reason, now(), asked.due),
        )
        self._subjects(name, entries)
        self.tell("request", "received", request=name)
        return name, True

    def _subjects(self, request: str, entries: tuple[Entry, ...]) -> None:
        rows = [
            (
                request,
                k,
                e[0] if (kind := len(e)) == 2 else None,
                e[1] if kind == 2 else e[0],
            )
            for k, e in enumerate(entries)
        ]
        self.db.executemany("INSERT INTO subject VALUES (?, ?, ?, ?)", rows)

    def entries(self, request: str) -> list[Entry]:
        """What a waiting request names; nothing once it is committed or cancelled."""
        rows = self.db.execute(
            "SELECT user, item FROM subject WHERE request = ? ORDER BY position", (request,)
        ).fetchall()
        return [(row["item"],) if row["user"] is None else (row["user"], row["item"]) for row in rows]

    def get(self, request: str) -> dict[str, Any]:
        """A request's row, without what it names.

        Raises:
            RequestError: there is none of this id.
        """
        row = None
        if REQUEST_ID.fullmatch(request):
            row = self.db.execute("SELECT * FROM request WHERE id = ?", (request,)).fetchone()
        if row is None:
            raise RequestError(
                "there is no such request", where="request", mend="`curerec request list` has the ids"
            )
        return _row(row)

    def all(self, states: Iterable[str] = (), *, limit: int = 1000, after: str = "") -> list[dict[str, Any]]:
        """Requests by due date, then by arrival; what is finished after what is not.

        Args:
            states: only these; empty: all.
            limit: at most so many.
            after: only those of a greater id, for paging in id order.

        Raises:
            RequestError: no request can be in one of the states.
        """
        wanted = known_states(states)
        where = f"state IN ({', '.join('?' * len(wanted))})" if wanted else "1"
        last = "state IN ('committed', 'cancelled')"
        order = "id" if after else f"{last}, coalesce(due, '9999'), received, id"
        rows = self.db.execute(
            f"SELECT * FROM request WHERE {where} AND id > ? ORDER BY {order} LIMIT ?",
            (*wanted, after, limit),
        )
        return [_row(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """Requests by state."""
        found = dict(self.db.execute("SELECT state, count(*) FROM request GROUP BY state").fetchall())
        return {s: found.get(s, 0) for s in STATES}

    def overdue(self, today: str) -> int:
        """Requests that are not done and whose date has passed."""
        return self.db.execute(
            "SELECT count(*) FROM request WHERE state IN ('open', 'running', 'held') AND due < ?", (today,)
        ).fetchone()[0]

    def cancel(self, request: str) -> None:
        """Take a waiting request back; what it names is erased from the ledger.

        Raises:
            RefusedError: it is being carried out, or done.
        """
        with transaction(self.db):
            state = self.get(request)["state"]
            if state not in (*WAITING, "cancelled"):
                mend = "`curerec request show` says what becomes of it"
                raise RefusedError(f"is {state}, too late to cancel it", where=request, mend=mend)
            if state != "cancelled":
                self.db.execute(
                    "UPDATE request SET state = 'cancelled', finished = ?, detail = NULL, reason = NULL "
                    "WHERE id = ?",
                    (now(), request),
                )
                self.db.execute("DELETE FROM subject WHERE request = ?", (request,))
                require_rewrite(self.db)
                self.tell("request", "cancelled", request=request)
        forget_pages(self.db)  # also of one that was cut off before it came here

    def tell(
        self,
        kind: str,
        text: str,
        *,
        batch: str | None = None,
        request: str | None = None,
        done: int | None = None,
        total: int | None = None,
    ) -> None:
        """Write an event; it holds no id of a person."""
        self.db.execute(
            "INSERT INTO event (at, batch, request, kind, text, done, total) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (now(), batch, request, kind, text, done, total),
        )

    def events(self, *, after: int = 0, request: str | None = None, limit: int = 500) -> list[dict[str, Any]]:
        """Events of an id above ``after``, of everything or of one request and its batch."""
        where, values = "id > ?", [after]
        if request is not None:
            where += " AND (request = ? OR batch = (SELECT batch FROM request WHERE id = ?))"
            values += [request, request]  # type: ignore[list-item]
        rows = self.db.execute(f"SELECT * FROM event WHERE {where} ORDER BY id LIMIT ?", (*values, limit))
        return [dict(row) for row in rows]


def _row(row: sqlite3.Row) -> dict[str, Any]:
    out = dict(row)
    out.pop("content_key")
    return out
