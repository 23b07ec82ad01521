"""The chain of records: in-toto Statements in canonical JSON, each naming the hash of the one before.

A record says that this algorithm ran on these inputs with these measurements. It proves no erasure.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785

from curerec.data import durable
from curerec.errors import DataError
from curerec.requests import signing

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:curerec:record:1"
PAYLOAD = "application/vnd.in-toto+json"
ACTIONS = ("init", "deletion", "retrain", "rollback", "ingest", "shred")
FILE_NAME = re.compile(r"([0-9]{6,})-([0-9a-f]{64})\.json")
NOT_CLAIMED = (
    "This record says that the named algorithm ran on the named inputs with the named measurements.",
    "It is no proof of erasure: what a measurement has no power to see is not excluded.",
    "Copies of the data and of earlier versions outside of the store are not covered.",
    "What the base model learnt in its own pre-training is not touched.",
)


@dataclass(frozen=True)
class Link:
    """One record as it is stored.

    Attributes:
        sequence: from 1, without gaps.
        sha256: of ``body``.
        action: one of :data:`ACTIONS`.
        body: the canonical statement.
        signature: Ed25519 over its DSSE encoding, or None.
        request, batch: what it belongs to in the ledger.
    """

    sequence: int
    sha256: str
    action: str
    body: bytes
    signature: bytes | None = None
    request: str | None = None
    batch: str | None = None

    @property
    def name(self) -> str:
        """File name: a changed file no longer fits it."""
        return f"{self.sequence:06d}-{self.sha256}.json"


def link(
    action: str,
    before: Link | None,
    subjects: dict[str, str],
    predicate: dict[str, Any],
    *,
    key: Path | None = None,
    request: str | None = None,
    batch: str | None = None,
) -> Link:
    """The next record.

    Args:
        action: what was done.
        before: the record before, None for the first.
        subjects: name to sha256 of what was made.
        predicate: everything else; plain JSON values.
        key: of Ed25519, PEM; None: not signed.
        request, batch: what it belongs to in the ledger.
    """
    sequence = 1 if before is None else before.sequence + 1
    body = rfc8785.dumps(
        {
            "_type": STATEMENT,
            "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(subjects.items())],
            "predicateType": PREDICATE,
            "predicate": {
                **predicate,
                "action": action,
                "sequence": sequence,
                "previous": before.sha256 if before else None,
                "not_claimed": list(NOT_CLAIMED),
            },
        }
    )
    signature = None if key is None else signing.sign(key, encoded(body))
    return Link(sequence, hashlib.sha256(body).hexdigest(), action, body, signature, request, batch)


def encoded(body: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding.

    Source: DSSE v1, ``PAE(type, body)``.
    """
    kind = PAYLOAD.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def envelope(one: Link, key_id: str) -> bytes:
    """A signed record as a DSSE envelope, which in-toto tools read."""
    return rfc8785.dumps(
        {
            "payloadType": PAYLOAD,
            "payload": base64.b64encode(one.body).decode(),
            "signatures": [{"keyid": key_id, "sig": base64.b64encode(one.signature or b"").decode()}],
        }
    )


def write(one: Link, folder: Path, key_id: str | None = None) -> None:
    """Put a record beside the others as a file; done already is done."""
    path = folder / one.name
    if not path.exists():
        durable.write(path, one.body, mode=0o644)
    if one.signature is not None:
        signed = path.with_suffix(".dsse.json")
        if not signed.exists():
            durable.write(signed, envelope(one, key_id or ""), mode=0o644)


def statement(body: bytes, *, where: str) -> dict[str, Any]:
    """A record's content.

    Raises:
        DataError: not canonical JSON, or not a statement of ours.
    """
    try:
        content = json.loads(body)
        canonical = rfc8785.dumps(content) == body
    except (ValueError, TypeError, RecursionError, rfc8785.CanonicalizationError):
        content, canonical = None, False
    if not canonical or not isinstance(content, dict):
        raise DataError("is not canonical JSON", where=where)
    predicate = content.get("predicate")
    if (
        content.get("_type") != STATEMENT
        or content.get("predicateType") != PREDICATE
        or not isinstance(predicate, dict)
        or predicate.get("action") not in ACTIONS
        or not isinstance(content.get("subject"), list)
    ):
        raise DataError("is no record of this version", where=where)
    return content


def version_of(one: Link) -> str | None:
    """The version that a record put in force, if it did."""
    try:
        said = statement(one.body, where="record")["predicate"].get("version")
    except DataError:
        return None
    found = said.get("after") if isinstance(said, dict) else said
    return found if isinstance(found, str) else None


def faults(links: list[Link], *, public: Path | None = None, head: str | None = None) -> list[str]:
    """Everything that is wrong with a chain, in words; empty if it holds together.

    Args:
        links: in the order found.
        public: PEM of the Ed25519 key that every record must be signed with.
        head: sha256 that the last record must have, from where nobody could change it; without it, records
            cut off at the end of a copied chain cannot be missed.
    """
    found, before = [], None
    for place, one in enumerate(links, start=1):
        where = f"record {place}"
        if hashlib.sha256(one.body).hexdigest() != one.sha256:
            found.append(f"{where}: its content is not what its hash says")
        try:
            content = statement(one.body, where=where)
        except DataError as error:
            found.append(str(error))
            before = one
            continue
        predicate = content["predicate"]
        if predicate.get("sequence") != place or one.sequence != place:
            found.append(
                f"{where}: is numbered {predicate.get('sequence')!r}: one is missing or out of order"
            )
        if predicate.get("previous") != (before.sha256 if before else None):
            found.append(f"{where}: does not name the record before it")
        if predicate.get("action") != one.action:
            found.append(f"{where}: is of another kind than the ledger says")
        if public is not None and not signing.valid(public, encoded(one.body), one.signature):
            found.append(f"{where}: is not signed with this key")
        before = one
    if head is not None and (before is None or before.sha256 != head):
        found.append("chain: does not end with the record given as its head")
    return found
