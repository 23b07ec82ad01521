"""Counterfactual prompts: the history items that argue for the label, replaced by ones that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curerec.data.graph import liked_graph, personalised_pagerank
from curerec.data.popularity import popularity_decile
from curerec.errors import PromptError
from curerec.interactions import Interactions
from curerec.prompts.encoding import Encoder, Queries

Start = Literal["item", "user"]
#: Start nodes whose PageRank is taken at once, and numbers that their vectors hold together at the most.
STARTS, CELLS = 256, 1 << 24


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupt queries, position by position of the same token length.

    Attributes:
        clean: queries as they are, [n].
        corrupt: the same with some history items replaced, [n].
        unaligned: how many queries had no replacement of the same length and popularity, and were left out.
        replaced: how many history items were replaced, int [n].
        index: which of the queries asked for each pair is of, int [n].
    """

    clean: Queries
    corrupt: Queries
    unaligned: int
    replaced: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def put_in(self) -> np.ndarray:
        """Item codes that took the place of others, int32 [n, K]; -1 where nothing was replaced."""
        return np.where(self.corrupt.history != self.clean.history, self.corrupt.history, -1)


def counterfactual_pairs(
    data: Interactions,
    q: Queries,
    encoder: Encoder,
    train_rows: np.ndarray,
    *,
    replace: int = 5,
    candidates: int = 20,
    deciles: int = 10,
    start: Start = "item",
    users: np.ndarray | None = None,
    seed: int = 0,
) -> Pairs:
    """Corrupt queries by personalised PageRank from the candidate item, or from the user.

    For a liked candidate the ``replace`` liked history items nearest to it are replaced by items far from it;
    for a disliked one the liked items farthest from it are replaced by items near it. From the user, near is
    what their training likes and those of like-minded users lead to, whatever the candidate is.

    "Near" and "far" are the ends of the PageRank order among items with the same number of tokens (so
    positions align) in the same popularity decile (so popularity is not what changes); one of the
    ``candidates`` most extreme is drawn at random, never one already in the prompt.

    Args:
        data: interactions.
        q: queries to corrupt, [n].
        encoder: of the model's prompts; gives token lengths.
        train_rows: interactions that the graph and the popularity may use.
        replace: at most so many items a prompt.
        candidates: how many of the most extreme replacements to draw from.
        deciles: number of popularity classes.
        start: ``item``: the walk starts at the candidate; ``user``: at who is asked for.
        users: user code of each query, int [n]; needed with ``user``.
        seed: of the draws.

    Raises:
        PromptError: no query could be corrupted, or ``user`` without the users.

    Source: METHOD section 2; PageRank counterfactuals are the paper's, alignment is this project's.
    """
    rng = np.random.default_rng([seed, 23])
    n_items = len(data.item_ids)
    if start == "user" and (users is None or len(users) != len(q)):
        raise PromptError(
            "PageRank from the user needs the user of each query",
            where="counterfactuals",
            mend="Pass users: data.user_code[examples.target]",
        )
    near, inverse = _nearness(data, train_rows, q.candidate, users if start == "user" else None)
    popularity = np.bincount(data.item_code[train_rows], minlength=n_items)
    decile = popularity_decile(data, train_rows, deciles)
    # An item nobody in training rated is on no path: neither near nor far.
    classes: dict[tuple[int, int], np.ndarray] = {}
    length = np.asarray([len(ids) for ids in encoder.title_tokens(range(n_items))])
    for key in {(int(a), int(b)) for a, b in zip(length, decile, strict=True)}:
        classes[key] = np.flatnonzero((length == key[0]) & (decile == key[1]) & (popularity > 0))
    corrupt = q.history.copy()
    replaced = np.zeros(len(q), int)
    for n in range(len(q)):
        rank = near[inverse[n]]
        used = {*q.history[n].tolist(), int(q.candidate[n])}
        liked = np.flatnonzero(q.rating[n] >= 4)
        towards = -1 if q.label[n] == 1 else 1  # sign of "the replacement's rank should be ..."
        for position in liked[np.argsort(towards * rank[q.history[n, liked]], kind="stable")][:replace]:
            old = q.history[n, position]
            pool = classes[(int(length[old]), int(decile[old]))]
            pool = pool[~np.isin(pool, list(used))]
            pool = pool[towards * rank[pool] > towards * rank[old]]
            if len(pool):
                new = rng.choice(pool[np.argsort(-towards * rank[pool], kind="stable")][:candidates])
                corrupt[n, position] = new
                used.add(int(new))
                replaced[n] += 1
    keep = replaced > 0
    if not keep.any():
        raise PromptError(
            "no prompt has a replacement of the same length and popularity",
            where="counterfactuals",
            mend="Use a larger catalogue, fewer popularity classes or more prompts",
        )
    bad = Queries(corrupt[keep], q.rating[keep], q.candidate[keep], q.label[keep])
    return Pairs(q.take(keep), bad, int((~keep).sum()), replaced[keep], np.flatnonzero(keep))


def _nearness(
    data: Interactions, train_rows: np.ndarray, candidate: np.ndarray, users: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """PageRank of every item from each distinct start, [starts, n_items], and the start of each query, [n].

    Starts are the candidates, or the users where they are given. Users without a training row are on no path
    but their own, so the graph goes without the others.
    """
    n_users, n_items = len(data.user_ids), len(data.item_ids)
    wanted = np.unique(np.r_[data.user_code[train_rows], [] if users is None else users]).astype(np.int64)
    kept = np.r_[wanted, n_users + np.arange(n_items)]
    walk = liked_graph(data, train_rows)[kept][:, kept]
    nodes = candidate + len(wanted) if users is None else np.searchsorted(wanted, users)
    starts, inverse = np.unique(nodes, return_inverse=True)
    size = min(STARTS, max(1, CELLS // len(kept)))
    parts = [starts[k : k + size] for k in range(0, len(starts), size)]
    ranks = [personalised_pagerank(walk, part, n_users=len(wanted), tol=1e-6) for part in parts]
    return np.concatenate([rank[:, len(wanted) :] for rank in ranks]), inverse
