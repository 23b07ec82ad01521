"""Popularity classes of items."""

from __future__ import annotations

import numpy as np

from curerec.interactions import Interactions


def popularity_decile(data: Interactions, rows: np.ndarray, deciles: int = 10) -> np.ndarray:
    """Class of every item by its number of interactions, 0 (least) to ``deciles`` - 1, int [n_items].

    Args:
        data: interactions.
        rows: interactions to count.
        deciles: number of classes, of equal size; items with equal counts are told apart by their order.
    """
    popularity = np.bincount(data.item_code[rows], minlength=len(data.items))
    return (popularity.argsort(kind="stable").argsort() * deciles) // len(data.items)
