"""What requests of a version left in the user's cache for the next: listed, so that a commit destroys it."""

from __future__ import annotations

import json
import os
import re

from curerec.data.cache import retain_side_at
from curerec.requests.database import transaction
from curerec.requests.store import Store

KIND = "retain side of the circuit"


def list_retain_sides(store: Store) -> None:
    """Enter the folders of all versions that may be served as artefacts to be destroyed.

    Also of versions that no run of this store scored: ``curerec unlearn`` on the recommender that the store
    was made of leaves its own at the same place. They are entered before a batch is judged, by their paths: a
    later process may have another cache.
    """
    for row in store.db.execute("SELECT id FROM version WHERE state = 'lawful'").fetchall():
        try:
            card = json.loads((store.root / "versions" / row["id"] / "curerec.json").read_bytes())
            folder = retain_side_at(card["weights_sha256"]).resolve()
        except (OSError, ValueError, LookupError, TypeError):
            continue
        if not re.fullmatch(r"[0-9a-f]{64}", folder.name) or not folder.is_dir():
            continue
        removable = os.access(folder.parent, os.W_OK | os.X_OK)  # else the commit could not end
        with transaction(store.db) as db:
            db.execute(
                "INSERT INTO artefact (path, kind, policy) VALUES (?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE SET policy = excluded.policy, state = 'there'",
                (str(folder), KIND, "destroy" if removable else "list"),
            )
