"""A new store: a trained recommender, its data and its split, as the first version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from curerec.interactions import Interactions
from curerec.machine import versions
from curerec.opened import check_as_trained, open_recommender
from curerec.pipeline import check_method
from curerec.recommender import storage
from curerec.requests import store as stores
from curerec.requests.opening import base_of, settings_of
from curerec.requests.policy import Policy
from curerec.requests.table import of_split
from curerec.splitting import base_rows


def init(
    root: Path,
    recommender: Path,
    data: Interactions,
    *,
    base: Path | None = None,
    policy: Policy | None = None,
) -> str:
    """Make a store of a recommender that ``curerec train`` wrote, from which nothing was deleted yet.

    Args:
        root: folder to make.
        recommender: its folder; copied, and listed as an artefact outside of the store.
        data: what it was trained on; copied.
        base: folder of its base model, where its name alone does not find it.
        policy: of the operator.

    Returns:
        Content hash of the first version.

    Raises:
        CurerecError: recommender, data or folder cannot be used.
    """
    policy = policy or Policy()
    check_method(policy.method, saved=True)
    opened = open_recommender(recommender, data, base=base)
    check_as_trained(opened)
    settings_of(opened.recipe, policy.recipe)  # refused now, not when a request is due
    table = of_split(data, opened.split, base_rows(data, opened.recipe))

    def fill(folder: Path) -> dict[str, Any]:
        stores.copy_files(recommender, folder)
        card = opened.recommender.card
        card = {k: v for k, v in card.items() if k not in ("format", "weights_sha256")}
        storage.write_card(replace(opened.recommender, card={**card, "committed": True}), folder)
        return {"base": base_of(opened), "versions": versions()}

    named = Path(opened.recommender.card["base"]["name"])  # a folder as it was typed where it was trained
    own = base if base is not None or not named.is_dir() else named
    where = None if own is None else str(own.resolve())
    return stores.create(root, table, fill, policy=policy, source=recommender, base=where)
