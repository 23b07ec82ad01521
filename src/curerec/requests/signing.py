"""Ed25519 signatures of records, by the library `cryptography` (extra ``sign``)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from curerec.errors import ConfigError


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError(
            "needs the extra `sign`", where="signatures", mend="In a clone: pip install -e '.[sign]'"
        ) from None
    return serialization, ed25519


def _private(path: Path) -> Any:
    serialization, ed25519 = _library()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        mend = "Make one: openssl genpkey -algorithm ed25519 -out key.pem"
        raise ConfigError("is no Ed25519 private key in PEM", where="sign_key", mend=mend)
    return key


def _public(path: Path) -> Any:
    serialization, ed25519 = _library()
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError):
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise ConfigError(
            "is no Ed25519 public key in PEM", where="public key", mend="Make it: openssl pkey -pubout"
        )
    return key


def sign(path: Path, message: bytes) -> bytes:
    """The signature of a message, 64 bytes.

    Raises:
        ConfigError: no such key, or the library is not installed.
    """
    return _private(path).sign(message)


def public_of(path: Path) -> bytes:
    """The public key, PEM, that belongs to a private one."""
    serialization, _ = _library()
    return (
        _private(path)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def valid(path: Path, message: bytes, signature: bytes | None) -> bool:
    """Whether a signature is that of a public key, PEM."""
    from_cryptography = _public(path)
    try:
        from_cryptography.verify(signature or b"", message)
    except Exception:  # InvalidSignature; whatever else it raises is no valid signature either
        return False
    return True


def key_id(path: Path) -> str:
    """sha256 of a public key file, which names the key."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
