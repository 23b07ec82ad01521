"""Which of a user's interactions a prompt may show: those not deleted, chosen for the candidate."""

from __future__ import annotations

from typing import Literal

import numpy as np

from curerec.interactions import Interactions
from curerec.records import Examples

Strategy = Literal["preference", "diversity", "attention"]


class Retriever:
    """Rebuilds histories from what is left of a user's earlier interactions.

    ============ =================================================================================
    preference   the best rated, the latest of equals
    diversity    greedily by ``trade cos(i, candidate) - (1 - trade) max cos(i, chosen)`` (MMR)
    attention    the largest weights of ``softmax(<i, candidate> / sqrt(d))``
    ============ =================================================================================

    Args:
        data: interactions, sorted by user and time.
        deleted: bool [n_rows], never shown.
        vectors: of the items, float [n_items, d].
        strategy: see above.
        pool: latest interactions to choose from.
        trade: of ``diversity``.

    Source: Zhang et al. 2025 (CRAGRU), arXiv 2511.05494 (three retrieval strategies; details this project's).
    """

    def __init__(
        self,
        data: Interactions,
        deleted: np.ndarray,
        vectors: np.ndarray,
        strategy: Strategy,
        *,
        pool: int = 50,
        trade: float = 0.5,
    ) -> None:
        self.data, self.deleted, self.vectors = data, deleted, vectors.astype(np.float64)
        self.strategy, self.pool, self.trade = strategy, pool, trade
        length = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self.unit = self.vectors / np.where(length > 0, length, 1)

    def __call__(self, examples: Examples) -> Examples:
        """The examples with histories retrieved anew, oldest first, right-aligned."""
        size = examples.history.shape[1]
        history = np.full_like(examples.history, -1)
        for n, target in enumerate(examples.target):
            rows = np.arange(self.data.first[self.data.user_code[target]], target)
            rows = rows[~self.deleted[rows]][-self.pool :]
            chosen = np.sort(rows[self.choose(rows, int(target), size)])
            history[n, size - len(chosen) :] = chosen
        return Examples(examples.target, history, examples.label)

    def choose(self, rows: np.ndarray, target: int, size: int) -> np.ndarray:
        """Positions in ``rows`` of at most ``size`` interactions for a target row."""
        if len(rows) <= size:
            return np.arange(len(rows))
        items, candidate = self.data.item_code[rows], self.data.item_code[target]
        if self.strategy == "preference":
            return np.lexsort((-rows, -self.data.rating[rows]))[:size]
        if self.strategy == "attention":
            score = self.vectors[items] @ self.vectors[candidate] / np.sqrt(self.vectors.shape[1])
            return np.lexsort((-rows, -score))[:size]
        near = self.unit[items] @ self.unit[candidate]
        alike = self.unit[items] @ self.unit[items].T
        chosen: list[int] = []
        for _ in range(size):
            crowd = alike[:, chosen].max(1) if chosen else np.zeros(len(rows))
            score = self.trade * near - (1 - self.trade) * crowd
            score[chosen] = -np.inf
            chosen.append(int(score.argmax()))
        return np.asarray(chosen)
