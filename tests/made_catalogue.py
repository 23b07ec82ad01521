"""A small made-up catalogue and what made-up users rated in it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from curerec.data.table import interactions
from curerec.interactions import Interactions

#: Columns of a ratings table without dictionaries, so that two can be compared.
PLAIN = pa.schema({"user": pa.string(), "item": pa.string(), "rating": pa.float64(), "time": pa.int64()})
WORDS = ["Amber", "Basalt", "Cedar", "Dune", "Ember", "Fjord", "Garnet", "Harbour", "Indigo", "Juniper"]


def made_titles(n_items: int = 60) -> dict[str, str]:
    """Titles of two or three words, so that many items share a token length; no two alike."""
    titles = {}
    for k in range(n_items):
        words = [WORDS[k % 10], WORDS[(k // 10 + k) % 10], *([WORDS[k % 7]] if k % 3 == 0 else [])]
        titles[f"i{k}"] = " ".join([*words, str(k)])
    return titles


def made_catalogue(
    n_users: int = 40, n_items: int = 60, per_user: tuple[int, int] = (8, 30), *, seed: int = 0
) -> Interactions:
    """Ratings by users who like the items of one parity, with many equal times."""
    rng = np.random.default_rng(seed)
    users, items, ratings, times = [], [], [], []
    for user in range(n_users):
        chosen = rng.choice(n_items, size=min(n_items, int(rng.integers(*per_user))), replace=False)
        likes = chosen % 2 == user % 2
        rating = np.where(likes, rng.integers(3, 6, len(chosen)), rng.integers(1, 5, len(chosen)))
        users += [f"u{user}"] * len(chosen)
        items += [f"i{k}" for k in chosen]
        ratings += rating.tolist()
        times += rng.integers(0, 20, len(chosen)).tolist()
    return interactions(users, items, ratings, times, made_titles(n_items), name="made", source="test")
