"""The folder of one served recommender: ledger, versions, stored table, records, keys.

ledger.sqlite  policy.yaml  current -> versions/<content hash>
versions/  data/  records/  reports/  work/  keys/  quarantine/
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from curerec.config import read_yaml
from curerec.data import durable
from curerec.data.output import check_out, replacing
from curerec.errors import ConfigError, DataError, StorageError
from curerec.recommender import manifest
from curerec.requests import chain, keys, signing
from curerec.requests import table as tables
from curerec.requests.database import connect, transaction
from curerec.requests.ledger import Ledger, now
from curerec.requests.policy import Policy
from curerec.requests.table import Table

DATABASE, POLICY, CURRENT, PUBLIC = "ledger.sqlite", "policy.yaml", "current", "signing.pub.pem"
FOLDERS = ("versions", "data", "records", "reports", "work", "keys", "quarantine")


class Store:
    """An opened store; close it, or use it as a context.

    Args:
        root: its folder.
        looks: nothing will be changed, nor is a ledger of an older schema brought up.
        thread_check: refuse use from another thread than the one that opened it.

    Raises:
        StorageError: it is none.
    """

    def __init__(self, root: Path, *, looks: bool = False, thread_check: bool = True) -> None:
        self.root = Path(root)
        if not (self.root / DATABASE).is_file():
            mend = "`curerec request init` makes one"
            raise StorageError("is no store of a recommender", where=self.root.name, mend=mend)
        key = keys.read(self.root / "keys", keys.LEDGER)
        self.ledger = Ledger(self.root / DATABASE, key, looks=looks, thread_check=thread_check)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    @property
    def db(self) -> sqlite3.Connection:
        """The ledger's connection."""
        return self.ledger.db

    @property
    def lock(self) -> Path:
        """Folder that a runner locks."""
        return self.root

    @cached_property
    def policy(self) -> Policy:
        """What the operator decided, the same from the first look on: a run is of one policy."""
        return self.read_policy()

    def read_policy(self) -> Policy:
        """What the operator decided, as the file has it now: a service opened its store long ago.

        Raises:
            ConfigError: the file holds an unknown key or a value out of range.
        """
        return read_yaml(Policy, self.root / POLICY)

    @property
    def version(self) -> str:
        """Content hash of the version in force by the ledger."""
        return self.ledger.meta("version") or ""

    def version_folder(self, version: str | None = None) -> Path:
        """Folder of a version, checked to the last byte.

        Raises:
            ModelError: it is not what its name says.
        """
        name = version or self.version
        folder = self.root / "versions" / name
        manifest.check(folder, name=name, where=f"version {name[:12]}")
        return folder

    def table(self) -> Table:
        """The stored training table as it is now.

        Raises:
            DataError: it is damaged.
        """
        while True:
            name = self.ledger.meta("data") or ""
            try:
                return tables.load(self.root / "data", name)
            except DataError:
                # A commit by another process may have put a new one in its place meanwhile.
                if self.ledger.meta("data") == name:
                    raise

    @property
    def sign_key(self) -> Path | None:
        """Private key that records are signed with; a relative path is one in the store."""
        return self.root / self.policy.sign_key if self.policy.sign_key else None

    def check_signing(self) -> None:
        """Refuse to write a record that the store's public key would not pass, before any work is done.

        Raises:
            ConfigError: the private key is missing, is another than at the beginning, or one of the two is
                not there.
        """
        key, public = self.sign_key, self.public_key
        if key is None and public is None:
            return
        if key is None or public is None or signing.public_of(key) != public.read_bytes():
            mend = "Name the key that the store was made with as sign_key; a chain has one key, or none"
            raise ConfigError(f"does not belong to the store's {PUBLIC}", where="sign_key", mend=mend)

    @property
    def public_key(self) -> Path | None:
        """Public key that every record must be signed with, if the store signs."""
        path = self.root / PUBLIC
        return path if path.exists() else None

    def links(self) -> list[chain.Link]:
        """The chain as the ledger holds it."""
        rows = self.db.execute("SELECT * FROM record ORDER BY sequence").fetchall()
        return [_link(row) for row in rows]

    def head(self) -> chain.Link | None:
        """The last record."""
        row = self.db.execute("SELECT * FROM record ORDER BY sequence DESC LIMIT 1").fetchone()
        return None if row is None else _link(row)

    def append(self, one: chain.Link) -> None:
        """Add a record to the ledger, inside of the caller's transaction."""
        self.db.execute(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?)",
            (one.sequence, one.sha256, one.action, one.request, one.batch, one.body, one.signature),
        )

    def write_records(self) -> None:
        """Bring the files of the chain up to the ledger."""
        key_id = signing.key_id(self.public_key) if self.public_key else None
        folder = self.root / "records"
        there = {path.name for path in folder.iterdir()}
        for one in self.links():
            dsse = one.name.replace(".json", ".dsse.json")
            if one.name not in there or (one.signature is not None and dsse not in there):
                chain.write(one, folder, key_id)

    def data_digest(self, name: str | None = None) -> dict[str, Any]:
        """What a record that belongs to no request says of the stored table: keyed by the ledger's key."""
        name = name or self.ledger.meta("data") or ""
        return {"hmac_sha256": keys.tag(self.ledger.key, "data", name)}

    def drift(self) -> tuple[float, float]:
        """Drift and fall of the AUC on D_v spent since the version in force was last trained."""
        row = self.db.execute("SELECT drift, auc_drop FROM version WHERE id = ?", (self.version,)).fetchone()
        return (0.0, 0.0) if row is None else (row["drift"], row["auc_drop"])


def _link(row: sqlite3.Row) -> chain.Link:
    return chain.Link(
        row["sequence"],
        row["sha256"],
        row["action"],
        row["body"],
        row["signature"],
        row["request"],
        row["batch"],
    )


def create(
    root: Path,
    table: Table,
    fill: Callable[[Path], dict[str, Any]],
    *,
    policy: Policy | None = None,
    source: Path | None = None,
    base: str | None = None,
) -> str:
    """Make a store, whole or not at all.

    Args:
        root: folder to make; must be empty or absent.
        table: what the recommender was trained on.
        fill: writes the recommender into a folder and says of it what the first record is to hold.
        policy: of the operator.
        source: folder that the recommender came from; listed as an artefact, not touched.
        base: folder of the base model, if it is not found by name.

    Returns:
        Content hash of the first version.

    Raises:
        StorageError: something is there, or the disk is full.
    """
    policy = policy or Policy()
    if policy.sign_key:  # named from where this is called; later commands are called elsewhere
        policy = policy.model_copy(update={"sign_key": str(Path(policy.sign_key).absolute())})
    check_out(root, inputs=[source])
    if root.exists() and any(root.iterdir()):
        raise StorageError("is there already", where=root.name, mend="Name another folder")
    if root.exists():
        root.rmdir()
    with replacing(root) as stage:
        os.chmod(stage, 0o700)
        for name in FOLDERS:
            (stage / name).mkdir(mode=0o700)
        if policy.sign_key:
            durable.write(stage / PUBLIC, signing.public_of(Path(policy.sign_key)), mode=0o644)
        durable.write(stage / POLICY, yaml.safe_dump(policy.model_dump(mode="json")).encode())
        secret = keys.make(stage / "keys", keys.LEDGER)
        draft = stage / "work" / "init"
        draft.mkdir()
        about = fill(draft)
        version = manifest.seal(draft)
        durable.publish(draft, stage / "versions" / version)
        data = tables.save(table, stage / "data")
        durable.point(stage / CURRENT, f"versions/{version}")
        first = chain.link(
            "init",
            None,
            {"adapter": version},
            {
                **about,
                "version": version,
                "created": now(),
                "policy_sha256": policy.digest,
                "data": {"after": {"hmac_sha256": keys.tag(secret, "data", data)}},
            },
            key=Path(policy.sign_key) if policy.sign_key else None,
        )
        db = connect(stage / DATABASE, create=True)
        try:
            with transaction(db):
                for key, value in (("version", version), ("data", data), ("base", base)):
                    if value is not None:
                        db.execute("INSERT INTO meta VALUES (?, ?)", (key, value))
                db.execute(
                    "INSERT INTO version (id, created, state) VALUES (?, ?, 'lawful')", (version, now())
                )
                db.execute(
                    "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (1, first.sha256, "init", None, None, first.body, first.signature),
                )
                if source is not None:
                    db.execute(
                        "INSERT INTO artefact (path, kind, policy) VALUES (?, 'recommender', 'list')",
                        (str(source.resolve()),),
                    )
        finally:
            db.close()
        public = stage / PUBLIC
        chain.write(first, stage / "records", signing.key_id(public) if public.exists() else None)
    return version


def copy_files(folder: Path, target: Path) -> None:
    """Copy the plain files of a folder."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != manifest.MANIFEST:
            shutil.copyfile(path, target / path.name)


def config_digest(values: Any) -> str:
    """sha256 of plain values in canonical form."""
    import rfc8785

    return hashlib.sha256(rfc8785.dumps(values)).hexdigest()
