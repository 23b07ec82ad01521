"""Keyed pseudonyms: who has the key can test a guess, and once the key is gone nobody can.

One key a request, for its record alone, so that pseudonyms of one person in two records do not meet and each
can be made unlinkable when its retention time ends. One key of the ledger, which recognises the same
request and rows that were deleted; it stays as long as re-ingestion is to be blocked.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from curerec.data import durable
from curerec.errors import StorageError

SIZE = 32
LEDGER = "ledger"


def make(folder: Path, name: str) -> bytes:
    """The key of this name, made if it is not there; on disk before it is returned."""
    path = folder / name
    if not path.exists():
        durable.write(path, secrets.token_bytes(SIZE))
    return read(folder, name)


def read(folder: Path, name: str) -> bytes:
    """The key of this name.

    Raises:
        StorageError: it was destroyed, or is damaged.
    """
    try:
        key = (folder / name).read_bytes()
    except OSError:
        mend = "A destroyed key is gone for good; that of the ledger, restore from a backup"
        raise StorageError("there is no such key (destroyed?)", where="keys", mend=mend) from None
    if len(key) != SIZE:
        raise StorageError("a key is damaged", where="keys", mend="Restore it from a backup")
    return key


def destroy(folder: Path, name: str) -> None:
    """Overwrite and remove a key; done already is done."""
    path = folder / name
    with durable.storing("keys"):
        if path.exists():
            handle = os.open(path, os.O_WRONLY)
            try:
                os.write(handle, bytes(SIZE))
                durable.retried(os.fsync, handle)
            finally:
                os.close(handle)
    durable.destroy(path)


def tag(key: bytes, *parts: str) -> str:
    """HMAC-SHA256 of texts, 64 hex digits; lengths go in, so that ("a", "bc") and ("ab", "c") differ.

    Example:
        >>> tag(b"k" * 32, "user", "7") == tag(b"k" * 32, "use", "r7")
        False
    """
    mac = hmac.new(key, digestmod="sha256")
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        mac.update(len(raw).to_bytes(8, "big") + raw)
    return mac.hexdigest()


def content_key(key: bytes, kind: str, entries: Iterable[tuple[str, ...]]) -> str:
    """What is the same for the same request, whatever its order and repetitions."""
    return tag(key, "request", kind, *sorted({tag(key, "entry", *entry) for entry in entries}))


def block_tag(key: bytes, kind: str, entry: tuple[str, ...]) -> str:
    """Names a user, an item or a pair whose rows must not come back."""
    return tag(key, "block", kind, *entry)


def pseudonym(key: bytes, kind: str, entry: tuple[str, ...]) -> str:
    """Names an entry in its request's record."""
    return tag(key, "subject", kind, *entry)
