"""Are some of the deleted left as they were: how far answers about each moved, against unseen people's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.stats import betabinom

from curerec.evaluation.inputs import margin, same_length
from curerec.interactions import Interactions
from curerec.records import ForgetSplit

TAIL = 0.025  # share of the groups of D_c that moved less, by definition
TOL = 1e-4  # of the log odds: above what another batch size changes in float32
LEAST_GROUPS = 40  # 1 / TAIL: of fewer groups none is in the tail but below all
ENOUGH = 100  # groups of D_c that a size must have at least to be compared at


@dataclass(frozen=True)
class Deleted:
    """What was deleted of one kind (whole users, whole items, single ratings), and the like of it in D_c.

    Attributes:
        rows: places in D_f of its examples, int [m].
        entity: which of them each is of, int [m].
        group: of each example of D_c the user, item or rating, int [n]; -1: left out, being deleted itself.
    """

    rows: np.ndarray
    entity: np.ndarray
    group: np.ndarray


def left_alone(
    forget: tuple[np.ndarray, np.ndarray],
    control: tuple[np.ndarray, np.ndarray],
    deleted: Sequence[Deleted],
    *,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Share of the deleted whose answers hardly moved, and what chance allows.

    A retrained model answers everybody a little differently, and those about whom it no longer knows
    anything more differently than others. So the mean square by which log odds about one of the deleted
    moved lies below the smallest fortieth (:data:`TAIL`) of those about people of D_c, by as many examples
    each, for hardly a fortieth of them. Those that an update has left alone are all there, however few they
    are; the membership AUC, a mean over all of D_f, does not tell a fifth of the people from sampling error.

    People are compared with people (items with items, ratings with ratings), since examples of one person
    move together; of each no more examples are taken, at random, than :data:`ENOUGH` groups of D_c have.

    Blind where answers moved and the memory was kept, as by a temperature or noise.

    Args:
        forget: answer logits on D_f of the original and of the unlearned model, each [m, 2], or margins [m].
        control: the same on D_c, each [n, 2] or [n].
        deleted: what was deleted, by kind (:func:`deleted_entities`).
        draws: samples of each group of D_c.
        seed: of all samples.

    Returns:
        ``share`` of the entities; ``limit``, which by chance 2.5 % of retrains exceed (beta-binomial: the
        fortieth is one of a sample of D_c's groups, too); ``n``, how many there are. ``share`` and ``limit``
        are nan where a kind has fewer than :data:`LEAST_GROUPS` groups in D_c, or D_f is empty.

    Raises:
        ConfigError: lengths that differ, values that are not finite.

    Source: this project; the limit: coverage of an order statistic, David and Nagaraja 2003, section 7.2. Of
    honest retrains and of people left alone, see ``benchmarks/quality/verdict``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> before, after = np.zeros(100), rng.normal(size=100)
        >>> after[:40] = 0
        >>> people = Deleted(np.arange(100), np.arange(100) // 10, np.arange(2000) // 10)
        >>> left_alone((before, after), (np.zeros(2000), rng.normal(size=2000)), [people])["share"]
        0.4
    """
    n = sum(len(np.unique(one.entity)) for one in deleted)
    groups = [len(np.unique(one.group[one.group >= 0])) for one in deleted]
    if not n or min(groups) < LEAST_GROUPS:
        return {"share": float("nan"), "limit": float("nan"), "n": n}
    moved, around = (_moves(*side) for side in (forget, control))
    rng = np.random.default_rng(seed)
    still, behind = 0, []
    for one in deleted:
        same_length(around, one.group, what="groups of the control set")
        here = one.group >= 0
        sizes = np.sort(np.bincount(np.unique(one.group[here], return_inverse=True)[1]))
        most = int(sizes[-min(ENOUGH, len(sizes))])
        of_groups = [_means(around[here], one.group[here], most, rng) for _ in range(draws)]
        mine = _means(moved[one.rows], one.entity, most, rng)
        size = np.minimum(np.bincount(np.unique(one.entity, return_inverse=True)[1]), most)
        for k in np.unique(size):
            null = np.concatenate([means[k - 1] for means in of_groups])
            here_too = int((sizes >= k).sum())
            least = np.sort(null[np.isfinite(null)])[_rank(here_too) * draws - 1]
            still += int((mine[k - 1][size == k] <= least).sum())
            behind += [here_too] * int((size == k).sum())
    of = int(np.median(behind))  # groups that a fortieth was taken of
    rank = _rank(of)
    likely = 1 - TAIL - 1e-9  # less a rounding: of one none may be there
    allowed = betabinom.ppf(likely, n, rank, of + 1 - rank)
    return {"share": still / n, "limit": float(allowed / n), "n": n}


def _rank(groups: int) -> int:
    """Which of so many groups, from the least moved up, another one falls below in at most a fortieth."""
    return max(1, int(TAIL * (groups + 1)))


def deleted_entities(data: Interactions, split: ForgetSplit) -> list[Deleted]:
    """What was deleted: of each example of D_f its user if all of theirs is gone, else its item, else itself.

    Args:
        data: interactions; only rows of these users and items are read.
        split: the request applied.

    Returns:
        Each kind that there is.
    """
    rows, control = split.forget.target, split.control.target
    user, item = data.user_code, data.item_code
    of_users, of_items = data.rows_of_users(user[rows]), data.rows_of_items(item[rows])
    user_stays = np.isin(user[rows], user[of_users[~split.deleted[of_users]]])
    item_stays = np.isin(item[rows], item[of_items[~split.deleted[of_items]]])
    gone = split.deleted[control]
    kinds = (
        (~user_stays, user[rows], user[control]),
        (user_stays & ~item_stays, item[rows], item[control]),
        (user_stays & item_stays, np.arange(len(rows)), np.arange(len(control))),
    )
    return [
        Deleted(np.flatnonzero(here), mine[here], np.where(gone, -1, like))
        for here, mine, like in kinds
        if here.any()
    ]


def _moves(before: np.ndarray, after: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Squared change of the log odds of each example, 0 where it is rounding."""
    z = [margin(side) for side in (before, after)]
    same_length(*z, what="logits before and after")
    by = np.abs(z[1] - z[0])
    return np.where(by <= TOL, 0.0, by**2)


def _means(
    values: np.ndarray, group: np.ndarray, most: int, rng: np.random.Generator
) -> Float64[np.ndarray, "most groups"]:
    """Mean of the first 1, 2, ... ``most`` values of each group in random order; nan where it has fewer."""
    order = np.lexsort((rng.random(len(values)), group))
    _, start, size = np.unique(group[order], return_index=True, return_counts=True)
    total = np.r_[0.0, np.cumsum(values[order])]
    k = np.arange(1, most + 1)[:, None]
    sums = total[np.minimum(start + k, len(values))] - total[start]
    return np.where(k <= size, np.maximum(sums, 0.0) / k, np.nan)
