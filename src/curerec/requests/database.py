"""The ledger's SQLite file: how it is opened, its schema, and the way from older ones."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curerec.errors import StorageError

#: One script a version; never edit one that was released, add the next.
MIGRATIONS = (
    # 1: requests, batches, records.
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE batch (
        id TEXT PRIMARY KEY,
        created TEXT NOT NULL,
        method TEXT NOT NULL,
        seed INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('running', 'held', 'committing', 'done', 'abandoned')),
        stage TEXT,
        version_before TEXT NOT NULL,
        version_after TEXT,
        data_before TEXT,
        data_after TEXT,
        decided TEXT,
        detail TEXT
    );
    CREATE TABLE request (
        id TEXT PRIMARY KEY,
        content_key TEXT UNIQUE,
        kind TEXT NOT NULL CHECK (kind IN ('users', 'items', 'interactions')),
        n_ids INTEGER NOT NULL CHECK (n_ids > 0),
        reason TEXT,
        received TEXT NOT NULL,
        due TEXT,
        state TEXT NOT NULL CHECK (state IN ('open', 'running', 'held', 'committed', 'cancelled')),
        batch TEXT REFERENCES batch (id),
        finished TEXT,
        detail TEXT,
        shredded INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX request_state ON request (state, due);
    CREATE TABLE subject (
        request TEXT NOT NULL REFERENCES request (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        user TEXT,
        item TEXT,
        PRIMARY KEY (request, position)
    ) WITHOUT ROWID;
    CREATE TABLE stage (
        batch TEXT NOT NULL REFERENCES batch (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        time_s REAL NOT NULL,
        PRIMARY KEY (batch, name)
    ) WITHOUT ROWID;
    CREATE TABLE record (
        sequence INTEGER PRIMARY KEY,
        sha256 TEXT NOT NULL UNIQUE,
        action TEXT NOT NULL,
        request TEXT REFERENCES request (id),
        batch TEXT REFERENCES batch (id),
        body BLOB NOT NULL,
        signature BLOB
    );
    CREATE TABLE version (
        id TEXT PRIMARY KEY,
        created TEXT NOT NULL,
        batch TEXT REFERENCES batch (id),
        state TEXT NOT NULL CHECK (state IN ('lawful', 'unlawful', 'quarantined', 'destroyed')),
        drift REAL NOT NULL DEFAULT 0,
        auc_drop REAL NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE TABLE block (
        tag TEXT PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('users', 'items', 'interactions'))
    ) WITHOUT ROWID;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        batch TEXT,
        request TEXT,
        kind TEXT NOT NULL,
        text TEXT NOT NULL,
        done INTEGER,
        total INTEGER
    );
    """,
    # 2: artefacts outside of the store that hold what was learnt (checkpoints, caches, logits).
    """
    CREATE TABLE artefact (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        path TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        policy TEXT NOT NULL CHECK (policy IN ('list', 'quarantine', 'destroy')),
        state TEXT NOT NULL DEFAULT 'there' CHECK (state IN ('there', 'quarantined', 'destroyed'))
    );
    CREATE INDEX event_batch ON event (batch, id);
    """,
    # 3: records by request, for the list of the service.
    """
    CREATE INDEX record_request ON record (request);
    """,
    # 4: what a batch's stages depend on beside method and seed; begun ones have none and are begun anew.
    """
    ALTER TABLE batch ADD COLUMN settings TEXT;
    """,
)
VERSION = len(MIGRATIONS)
TO_READ = ("foreign_keys = ON",)
TO_WRITE = (
    "busy_timeout = 30000",
    "journal_mode = WAL",
    "synchronous = FULL",  # a commit is on disk when it returns
    "secure_delete = ON",  # ids that are deleted are overwritten with zeros
    "temp_store = MEMORY",  # and what waits is in no temporary file elsewhere, of VACUUM for one
)
REWRITE = "rewrite"  # key in `meta`: ids were deleted since the file was last written anew
MEND = "Nothing was changed. Make room or mend the disk, then run the same command again"
DAMAGED = "Restore it from a backup"


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn SQLite's failures into errors of ours, which quote no statement and no value.

    Raises:
        StorageError: full disk, damaged file, locked for too long.
    """
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.OperationalError as error:
        text = str(error)
        if text.startswith("Could not decode"):  # and goes on with what is in the cell
            raise StorageError("is damaged", where="ledger", mend=DAMAGED) from None
        reasons = {
            "full": "the disk is full",
            "disk I/O": "cannot be written (input/output error)",
            "readonly": "cannot be written (read-only)",
            "locked": "is locked by another process for too long",
            "unable to open": "cannot be opened",
        }
        what = next((reason for sign, reason in reasons.items() if sign in text), "cannot be used")
        raise StorageError(what, where="ledger", mend=MEND) from None
    except sqlite3.DatabaseError:
        raise StorageError("is damaged", where="ledger", mend=DAMAGED) from None


class Cursor(sqlite3.Cursor):
    """Its rows as SQLite's; a page that is damaged may be met at any of them, not at the first alone."""

    def fetchone(self) -> Any:
        """The next row, or None.

        Raises:
            StorageError: as :func:`refusing`.
        """
        with refusing():
            return super().fetchone()

    def fetchall(self) -> list[Any]:
        """The rows that are left.

        Raises:
            StorageError: as :func:`refusing`.
        """
        with refusing():
            return super().fetchall()

    def __next__(self) -> Any:
        with refusing():
            return super().__next__()


class Connection(sqlite3.Connection):
    """A connection whose failures are errors of ours, for reads outside of a transaction too."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """As SQLite's.

        Raises:
            StorageError: as :func:`refusing`.
        """
        with refusing():
            return self.cursor(Cursor).execute(*arguments)


def connect(
    path: Path, *, create: bool = False, looks: bool = False, thread_check: bool = True
) -> sqlite3.Connection:
    """The ledger's database, brought up to this version's schema.

    Args:
        path: of the file.
        create: make it if it is not there.
        looks: nothing will be changed: of an older schema a copy in memory is brought up, the file stays.
        thread_check: refuse use from another thread than this.

    Raises:
        StorageError: it is not there, damaged, or of a newer version.
    """
    if not create and not path.is_file():
        raise StorageError(
            "there is no ledger here", where=path.parent.name, mend="`curerec request init` makes one"
        )
    with refusing():
        if create and not path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        still = not create and _is_still(path)
        connection: sqlite3.Connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?immutable=1" if still else path,
            uri=still,
            timeout=30,
            isolation_level=None,
            check_same_thread=thread_check,
            factory=Connection,
        )
        try:
            connection.row_factory = sqlite3.Row
            for pragma in TO_READ if still else (*TO_WRITE, *TO_READ):
                connection.execute(f"PRAGMA {pragma}")
            if not create and connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                raise StorageError("holds no schema: it was emptied", where="ledger", mend="Restore a backup")
            if looks or still:
                connection = _copy_if_older(connection, thread_check=thread_check)
            migrate(connection)
            if looks or still:  # what would be written to a copy is refused, not lost
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
    return connection


def _copy_if_older(file: sqlite3.Connection, *, thread_check: bool) -> sqlite3.Connection:
    """The file, or where a migration would write to it a copy of it in memory."""
    if file.execute("PRAGMA user_version").fetchone()[0] >= VERSION:
        return file
    copy = sqlite3.connect(
        ":memory:", isolation_level=None, check_same_thread=thread_check, factory=Connection
    )
    file.backup(copy)
    file.close()
    copy.row_factory = sqlite3.Row
    for pragma in TO_READ:
        copy.execute(f"PRAGMA {pragma}")
    return copy


def _is_still(path: Path) -> bool:
    """Whether nobody can be writing: a copy that cannot be written, without a log of what is to be written.

    To read any other SQLite makes files beside it, which a read-only copy does not take.
    """
    log = path.with_name(path.name + "-wal")
    return not os.access(path.parent, os.W_OK) and not log.exists()


def migrate(connection: sqlite3.Connection, *, to: int = VERSION) -> None:
    """Bring the schema up to ``to``, a version at a time, each in one transaction.

    Raises:
        StorageError: the file is of a newer version than this program.
    """
    while True:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > VERSION:
            what = f"is of schema version {found}, this program knows {VERSION}"
            raise StorageError(what, where="ledger", mend="Use the newer curerec")
        if found >= to:
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have been first while this one waited for the lock.
            if connection.execute("PRAGMA user_version").fetchone()[0] == found:
                for statement in MIGRATIONS[found].split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {found + 1}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """All of it or nothing; the write lock is taken at the start, so that what was read stays true.

    Raises:
        StorageError: as :func:`refusing`.
    """
    with refusing():
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Reads inside of it see one state, whatever others commit meanwhile.

    Raises:
        StorageError: as :func:`refusing`.
    """
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def require_rewrite(connection: sqlite3.Connection) -> None:
    """Note that ids were deleted, inside of the caller's transaction: :func:`forget_pages` is due."""
    # A mark of its own each time: what is deleted while the file is being written anew is due still.
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (REWRITE, secrets.token_hex(8)))


def forget_pages(connection: sqlite3.Connection, *, patience_ms: int = 2000) -> bool:
    """Empty the write-ahead log and, where ids were deleted, write the file anew: both may still hold them.

    ``secure_delete`` overwrites the rows that are deleted. It leaves the copies that SQLite left in unused
    parts of pages whenever it moved rows to other pages, as more came in or others went.

    Returns:
        Whether nothing is left. A reader that holds on to an old state, or a writer, for longer than
        ``patience_ms`` keeps it; then the next commit, cancellation or recovery does it.
    """
    with refusing():
        connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
        try:
            # First, so that behind a reader the log does not grow by the whole file each time.
            if not _empty_log(connection):
                return False
            due = connection.execute("SELECT key, value FROM meta WHERE key = ?", (REWRITE,)).fetchone()
            if due is None:
                return True
            try:
                sqlite3.Connection.execute(connection, "VACUUM")
                done = "DELETE FROM meta WHERE key = ? AND value = ?"
                sqlite3.Connection.execute(connection, done, tuple(due))
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                return False
            return _empty_log(connection)
        finally:
            connection.execute("PRAGMA busy_timeout = 30000")


def _empty_log(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
