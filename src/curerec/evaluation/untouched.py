"""Are some of the deleted left as they were: how far answers about each moved, against unseen data's."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import binom

from curerec.evaluation.inputs import margin, same_length
from curerec.interactions import Interactions
from curerec.records import ForgetSplit

TAIL = 0.025  # share of groups of unseen examples that move less, by definition
TOL = 1e-4  # of the log odds: above what another batch size changes in float32
LEAST_CONTROL = 40  # 1 / TAIL: of fewer examples no group of one is in the tail but below all


def untouched(
    forget: tuple[np.ndarray, np.ndarray],
    control: tuple[np.ndarray, np.ndarray],
    entity: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Share of the deleted whose answers hardly moved, and what chance allows.

    A retrained model answers everybody a little differently, and those about whom it no longer knows
    anything more differently than others. So the root mean square by which the log odds of one of
    the deleted moved lies below the smallest fortieth of those of as many examples drawn from D_c
    (:data:`TAIL`) for hardly a fortieth of them. Those that an update has left alone are all there, however
    few they are; the membership AUC, a mean over all of D_f, does not tell a fifth of the people from
    sampling error.

    Blind where answers moved and the memory was kept, as by a temperature or noise.

    Args:
        forget: answer logits on D_f of the original and of the unlearned model, each [m, 2], or margins [m].
        control: the same on D_c, each [n, 2] or [n].
        entity: of each deleted example, int [m] (:func:`deleted_entities`).
        draws: groups of D_c that entities of each size are compared with.
        seed: of the draws.

    Returns:
        ``share`` of the entities; ``limit``, which by chance 2.5 % of retrains exceed (binomial); ``n``, how
        many there are. ``share`` and ``limit`` are nan with fewer than :data:`LEAST_CONTROL` examples in D_c,
        or none in D_f.

    Raises:
        ConfigError: lengths that differ, values that are not finite.

    Source: this project. Examples of one person move together, which groups drawn at random from D_c do not
    show; of honest retrains, see ``benchmarks/quality/verdict``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> before, after = np.zeros(100), rng.normal(size=100)
        >>> after[:40] = 0
        >>> people = np.repeat(np.arange(10), 10)
        >>> untouched((before, after), (np.zeros(200), rng.normal(size=200)), people)["share"]
        0.4
    """
    if not len(forget[0]) or len(control[0]) < LEAST_CONTROL:
        return {"share": float("nan"), "limit": float("nan"), "n": len(np.unique(entity))}
    moved, around = (_moves(*side) for side in (forget, control))
    same_length(moved, entity, what="entities of the forget set")
    _, code, size = np.unique(entity, return_inverse=True, return_counts=True)
    mean = np.bincount(code, moved) / size
    least = np.empty(len(size))  # the largest mean square in the tail, by entity
    rng = np.random.default_rng(seed)
    for k in np.unique(size):
        drawn = around[rng.integers(len(around), size=(draws, k))].mean(1)
        least[size == k] = np.quantile(drawn, TAIL, method="lower")
    n = len(size)
    allowed = binom.ppf(1 - TAIL - 1e-9, n, TAIL)  # less a rounding: of one entity none may be there
    return {"share": float((mean <= least).mean()), "limit": float(allowed / n), "n": n}


def deleted_entities(data: Interactions, split: ForgetSplit) -> Int64[np.ndarray, " m"]:
    """What was deleted, of each example of D_f: a whole user, else a whole item, else the rating itself.

    Args:
        data: interactions; only rows of these users and items are read.
        split: the request applied.

    Returns:
        Numbers, equal for examples of one entity.
    """
    rows = split.forget.target
    user, item = data.user_code[rows].astype(np.int64), data.item_code[rows].astype(np.int64)
    of_users, of_items = data.rows_of_users(user), data.rows_of_items(item)
    user_stays = np.isin(user, data.user_code[of_users[~split.deleted[of_users]]])
    item_stays = np.isin(item, data.item_code[of_items[~split.deleted[of_items]]])
    n_users, n_items = len(data.user_ids), len(data.item_ids)
    alone = n_users + n_items + np.arange(len(rows))
    return np.where(user_stays, np.where(item_stays, alone, n_users + item), user)


def _moves(before: np.ndarray, after: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Squared change of the log odds of each example, 0 where it is rounding."""
    z = [margin(side) for side in (before, after)]
    same_length(*z, what="logits before and after")
    by = np.abs(z[1] - z[0])
    return np.where(by <= TOL, 0.0, by**2)
