"""Which code this is, where a version number does not tell: a run's rows and what is kept say it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

SUFFIXES = (".py", ".yaml")
METHODS_GROUP = "curerec.methods"  # entry points by which other packages offer methods


@cache
def source_digest() -> str:
    """Twelve hex digits of sha256 over the package's modules and recipes; checkouts of one version differ."""
    root = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES):
        content = path.read_bytes()
        found.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:12]


def packages() -> dict[str, str]:
    """Version by name of the other packages that offer methods."""
    found = {p.dist.name: p.dist.version for p in entry_points(group=METHODS_GROUP) if p.dist is not None}
    return dict(sorted(found.items()))
