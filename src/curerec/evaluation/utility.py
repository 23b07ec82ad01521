"""Does it still recommend: AUC, accuracy, log-loss and calibration of P(yes)."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from curerec.evaluation.auc import auc, auc_draws
from curerec.evaluation.bootstrap import enough_users, weights
from curerec.evaluation.inputs import equal_mass, labels, margin, numbers, p_yes, same_length
from curerec.recommender.score import label_nll

BINS = 15  # of the calibration error, as in Guo et al. 2017 (there of equal width)


ONE_CLASS = "all labels are the same"
EMPTY = "no examples"


def nll(logits: np.ndarray, label: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Loss of each example, ``log(1 + exp(-(2y - 1)(z_yes - z_no)))``, nats; does not overflow.

    It falls strictly with the margin towards the label, so attacks on its ranking see through a temperature.

    Args:
        logits: of (no, yes), [n, 2]; or margins, [n].
        label: 0 or 1, [n].

    Returns:
        float64 [n].

    Example:
        >>> nll(np.array([[0.0, 800.0], [0.0, 800.0]]), np.array([1, 0])).tolist()
        [0.0, 800.0]
    """
    z = margin(logits)
    return label_nll(z, labels(label, len(z)))


def utility(logits: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """The four utility metrics on one set.

    Args:
        logits: of (no, yes), [n, 2]; or margins, [n].
        label: 0 or 1, [n].

    Returns:
        ``auc``, ``acc``, ``log_loss`` (nats), ``ece``; and ``missing``, the reason of each nan:
        ``auc`` where all labels are the same, everything where the set is empty.

    Raises:
        ConfigError: logits that are not finite, labels other than 0 and 1, lengths that differ.

    Example:
        >>> utility(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 1]))["missing"]
        {'auc': 'all labels are the same'}
    """
    names = ("auc", "acc", "log_loss", "ece")
    if len(np.asarray(label)) == 0 and len(np.asarray(logits)) == 0:
        return {**dict.fromkeys(names, float("nan")), "missing": dict.fromkeys(names, EMPTY)}
    z = margin(logits)
    y = labels(label, len(z))
    one_class = bool(y.all() or not y.any())
    return {
        "auc": float("nan") if one_class else auc(z[y], z[~y]),
        "acc": float(((z > 0) == y).mean()),
        "log_loss": float(nll(z, y).mean()),
        "ece": ece(p_yes(z), y),
        "missing": {"auc": ONE_CLASS} if one_class else {},
    }


def ece(p: np.ndarray, label: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of P(yes).

    ``sum_b n_b / n |mean_b p - mean_b y|`` over bins of equally many examples; equal predictions share a bin.
    Chance alone gives about ``sqrt(bins / n) / 3``, and adds the less the larger the error is: on the same
    examples, too, the rise over a calibrated model comes out too small (docs/metrics.md).

    Args:
        p: P(yes), [n].
        label: 0 or 1, [n].
        bins: number of bins.

    Example:
        >>> ece(np.array([0.5, 0.5]), np.array([0, 1]))
        0.0
    """
    p = numbers(p, "probabilities")
    bin_of = equal_mass(p, bins)
    return float(np.abs(np.bincount(bin_of, p - labels(label, len(p)))).sum() / len(p))


def ece_rise(
    before: np.ndarray,
    after: np.ndarray,
    label: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """How much less well calibrated a model is than another on the same examples, with its error.

    Args:
        before, after: logits [n, 2], or margins [n].
        label: 0 or 1, [n].
        groups: user of each example, [n]; whole users are drawn then, if there are enough
            (:data:`curerec.evaluation.bootstrap.LEAST_USERS`).
        draws, seed: of the bootstrap; both models are drawn together.

    Returns:
        ``rise`` (:func:`ece` of ``after`` less that of ``before``, too small where that is calibrated) and
        ``se``, its bootstrap standard error.

    Related: :func:`auc_drop`.

    Example:
        >>> z = np.array([2.0, -2.0, 1.0, -1.0])
        >>> ece_rise(z, z, np.array([1, 0, 1, 0]), draws=5)
        {'rise': 0.0, 'se': 0.0}
    """
    sides = [p_yes(after), p_yes(before)]
    same_length(*sides, what="logits before and after")
    rise = ece(sides[0], label) - ece(sides[1], label)
    if groups is not None and not enough_users(groups):
        groups = None
    if len(sides[0]) < 2:
        return {"rise": rise, "se": float("nan")}
    drawn = [ece_draws(p, label, draws=draws, seed=seed, groups=groups) for p in sides]
    return {"rise": rise, "se": float(np.std(drawn[0] - drawn[1], ddof=1))}


def ece_draws(
    p: np.ndarray, label: np.ndarray, *, draws: int = 1000, seed: int = 0, groups: np.ndarray | None = None
) -> Float64[np.ndarray, " draws"]:
    """:func:`ece` in each bootstrap draw, in the bins of the sample; the same seed pairs two models.

    Draws scatter about a mean above the sample's value, as a mean of absolute values does.

    Args:
        p: P(yes), [n].
        label: 0 or 1, [n].
        draws, seed: of the bootstrap.
        groups: user of each example, [n]; whole users are drawn then.

    Raises:
        ConfigError: as :func:`curerec.evaluation.bootstrap.weights`.
    """
    off = p - labels(label, len(p))
    inside = (equal_mass(p, BINS)[:, None] == np.arange(BINS)) * off[:, None]
    drawn = weights(len(p), draws=draws, seed=seed, groups=groups)
    return np.concatenate([np.abs(w @ inside).sum(1) for w in drawn])


def auc_drop(
    before: np.ndarray,
    after: np.ndarray,
    label: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, float]:
    """How far one model's AUC lies below another's on the same examples, and the error of that.

    Both are drawn alike, so what makes a user easy or hard for both falls out: the drop is known better than
    either AUC, the better the more alike the models are.

    Args:
        before, after: logits of (no, yes), [n, 2]; or margins, [n].
        label: 0 or 1, [n].
        draws, seed: of the bootstrap.
        groups: user of each example, [n]; whole users are drawn then.

    Returns:
        ``drop`` and ``se`` (standard error); nan where there are fewer than 2 likes or dislikes.

    Example:
        >>> z, y = np.array([0.0, 2.0, 1.0, 3.0]), np.array([0, 0, 1, 1])
        >>> auc_drop(z, z, y, draws=5)
        {'drop': 0.0, 'se': 0.0}
    """
    y = labels(label, len(label)) if len(label) else np.zeros(0, bool)
    if min(y.sum(), (~y).sum()) < 2:
        return {"drop": float("nan"), "se": float("nan")}
    sides = None if groups is None else (np.asarray(groups)[y], np.asarray(groups)[~y])
    margins = [margin(before), margin(after)]
    aucs = [auc(z[y], z[~y]) for z in margins]
    drawn = [auc_draws(z[y], z[~y], draws=draws, seed=seed, groups=sides) for z in margins]
    return {"drop": aucs[0] - aucs[1], "se": float(np.std(drawn[0] - drawn[1], ddof=1))}
