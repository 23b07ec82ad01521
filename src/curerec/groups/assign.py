"""From contributions to roles: forget-specific, retain-specific, task-shared, frozen."""

from __future__ import annotations

import numpy as np

from curerec.errors import ModelError
from curerec.records import ROLES, Groups

FORGET, RETAIN, SHARED, FROZEN = range(4)
CHUNK = 16  # draws that are ranked at a time: arrays [draws, units] of all of them would be many GB


def percentile_within(values: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Share of the units of its type that a value is above, equal ones counted half, in (0, 1).

    Half of an even number of distinct values is at least 0.5, half below; units that score the same (such as
    0, where fine-tuning changed nothing) have the same percentile whatever their order.

    Args:
        values: [..., units].
        types: [units], labels; a type with one unit gets 1 where its value is above 0 and 0 elsewhere, since
            a rank among one says nothing.

    Returns:
        float64 [..., units].
    """
    out = np.empty(values.shape)
    kinds, kind_of = np.unique(types.astype(str), return_inverse=True)
    for kind in range(len(kinds)):
        member = np.flatnonzero(kind_of == kind)
        part = values[..., member]
        if part.shape[-1] == 1:
            out[..., member] = part > 0
        else:
            out[..., member] = (_mean_rank(part) - 0.5) / part.shape[-1]
    return out


def _mean_rank(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 along the last axis, ties sharing their mean rank; scipy's rankdata at half its time."""
    rows = values.reshape(-1, values.shape[-1])
    out = np.empty(rows.shape)
    for row, rank in zip(rows, out, strict=True):
        order = row.argsort()
        ordered = row[order]
        first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of each run of equal values
        after = np.r_[first[1:], len(row)]
        rank[order] = np.repeat((first + after + 1) / 2, after - first)
    return out.reshape(values.shape)


def comparable(types: np.ndarray, *, fewest: int = 8) -> np.ndarray:
    """Types among which percentiles mean something: those with few members are pooled.

    Of two layers' k_proj one is always "high": a rank among two says nothing about what either stores. Norms
    are pooled with norms only, since a handful of gains and whole matrices do not compare.

    Args:
        types: label of each unit, [units].
        fewest: smaller types are pooled.

    Returns:
        New labels, [units].
    """
    labels = types.astype(str)
    small = {t for t in np.unique(labels) if (labels == t).sum() < fewest}
    pooled = ["norms" if t.endswith("norm") else "pooled" if t in small else t for t in labels]
    return np.asarray(pooled, dtype=object)


def roles_from(forget: np.ndarray, retain: np.ndarray, types: np.ndarray, tau: float) -> np.ndarray:
    """Role codes of units from their mean scores, int [..., units].

    forget-specific: pF >= tau and pR < tau; retain-specific: pF < tau and pR >= tau; task-shared: both at
    least tau; frozen: neither.

    Source: METHOD section 6 (this project's definition of the paper's three groups).
    """
    return _roles(percentile_within(forget, types) >= tau, percentile_within(retain, types) >= tau)


def _roles(high_f: np.ndarray, high_r: np.ndarray) -> np.ndarray:
    return np.where(high_f & high_r, SHARED, np.where(high_f, FORGET, np.where(high_r, RETAIN, FROZEN)))


def assign(
    forget_scores: np.ndarray,
    retain_scores: np.ndarray,
    modules: tuple[str, ...],
    types: np.ndarray,
    *,
    tau: float = 0.5,
    draws: int = 200,
    certain: float = 0.9,
    uncertain_role: str | None = "shared",
    census: bool = False,
    forget_draws: np.ndarray | None = None,
    seed: int = 0,
) -> Groups:
    """Roles of units with their bootstrap agreement.

    Args:
        forget_scores: F, float [n_forget, units], per example (nats).
        retain_scores: R, float [n_unseen, units], per example, measured on data the model never saw.
        modules: names, [units].
        types: [units], what is comparable with what.
        tau: percentile from which a score counts as high.
        draws: bootstrap resamples of the stored per-example scores; no model is run.
        certain: a unit whose leading group has a smaller share of the draws goes to ``uncertain_role``.
        uncertain_role: role of overturned units; None keeps the leading one.
        forget_draws: resampled means of F, [draws, units], where examples' scores do not simply add up.
        census: the forget scores are those of all of D_f. What is to be forgotten is then known, not
            estimated from a sample of it, so only the retain scores are resampled.
        seed: of the resamples.

    Raises:
        ModelError: a unit's mean score is not finite; ranks of such scores would be roles of nothing.

    Source: METHOD section 6; ``census`` is this project's own.
    """
    forget, retain = forget_scores.mean(0), retain_scores.mean(0)
    _check_finite(forget, types, "what is to be forgotten")
    _check_finite(retain, types, "unseen data")
    rng = np.random.default_rng([seed, 31])
    votes = np.zeros((len(ROLES), len(modules)))
    if census:
        known = percentile_within(forget[None], types) >= tau
    elif forget_draws is None:
        forget_weights = _weights(len(forget_scores), draws, rng)
    weights = _weights(len(retain_scores), draws, rng)
    for start in range(0, draws, CHUNK):
        some = slice(start, start + CHUNK)
        if census:
            high_f = known
        elif forget_draws is None:
            high_f = percentile_within(_means(forget_scores, forget_weights[some]), types) >= tau
        else:
            high_f = percentile_within(forget_draws[some], types) >= tau
        high_r = percentile_within(_means(retain_scores, weights[some]), types) >= tau
        for voted in _roles(high_f, high_r):
            votes[voted, np.arange(len(modules))] += 1
    role = roles_from(forget, retain, types, tau)
    agreement = votes[role, np.arange(len(modules))] / draws
    if uncertain_role is not None:
        role = np.where(agreement < certain, ROLES.index(uncertain_role), role)  # type: ignore[arg-type]
    return Groups(
        modules=modules,
        role=np.asarray(ROLES, dtype=object)[role],
        forget_score=forget_scores.mean(0, dtype=np.float64),
        retain_score=retain_scores.mean(0, dtype=np.float64),
        agreement=agreement,
    )


def _check_finite(mean: np.ndarray, types: np.ndarray, of: str) -> None:
    """Refuse mean scores that are no numbers; units are not named, since rows of words say who rated what."""
    wrong = ~np.isfinite(mean)
    if wrong.any():
        kinds = np.unique(types[wrong].astype(str))
        raise ModelError(
            f"the contributions of {int(wrong.sum()):,} of {len(mean):,} units to {of} are not finite "
            f"({', '.join(kinds[:3])}{', ...' if len(kinds) > 3 else ''})",
            where="groups",
            mend="The recommender's weights or its loss are no finite numbers there: train it again with a "
            "lower learning rate (lr)",
        )


def _weights(n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Share of each of n examples in each bootstrap resample, float32 [draws, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float32) / n


def _means(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of resamples, [draws, units]; one matrix product instead of a loop over draws."""
    return weights @ scores.astype(np.float32, copy=False)


def random_groups(groups: Groups, types: np.ndarray, *, seed: int) -> Groups:
    """Groups of the same sizes drawn at random within each type: the twin that a circuit has to beat.

    Resampled data would not draw them otherwise, so their agreement is nan.
    """
    rng = np.random.default_rng([seed, 97])
    role = groups.role.copy()
    kinds, kind_of = np.unique(types.astype(str), return_inverse=True)
    for kind in range(len(kinds)):
        member = np.flatnonzero(kind_of == kind)
        role[member] = role[rng.permutation(member)]
    unknown = np.full_like(groups.agreement, np.nan)
    return Groups(groups.modules, role, groups.forget_score, groups.retain_score, unknown)


def rows_of_roles(groups: Groups) -> np.ndarray:
    """Role codes of a :class:`Groups`, int64 [units], in the order of :data:`curerec.records.ROLES`."""
    return np.asarray([ROLES.index(r) for r in groups.role], dtype=np.int64)
