"""Does the circuit matter to the task: its AUC with the circuit knocked out, and with the circuit alone."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from sklearn.metrics import roc_auc_score

from curerec.circuits.faithfulness import Judge, faithfulness
from curerec.delong import auc_drop

Z95 = 1.959964  # two-sided 95 % point of the normal distribution


def matters(
    judge: Judge,
    total: int,
    core: Collection[int],
    label: np.ndarray,
    *,
    draws: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """AUC of the whole model, of nothing, of the circuit alone, without it, and without random sets.

    A circuit that carries the task takes the AUC down to that of the wholly patched model when it is knocked
    out; a random set of as many modules (or edges) should not.

    Args:
        judge: of modules or edges, on prompts with both labels; see
            :func:`curerec.circuits.faithfulness.judge_modules`.
        total: number of elements.
        core: indices of the circuit.
        label: int [n].
        draws: random sets of the circuit's size.
        seed: of them.

    Returns:
        ``auc``, ``auc_floor`` (everything patched), ``auc_kept``, ``auc_without``, ``auc_random`` (mean over
        the draws of the AUC without a random set) with ``auc_random_low`` and ``auc_random_high`` (least and
        greatest), ``auc_random_kept``, ``margin_kept`` and ``margin_random_kept`` (faithfulness),
        ``lost`` (share of auc - auc_floor that goes with the circuit) and ``lost_random``. Both are nan where
        auc - auc_floor is not above 0 by more than :data:`Z95` of its standard errors: what does not take the
        AUC down cannot show what carries it.

    Source: METHOD section 4 (completeness), with the task's own metric.
    """
    rng = np.random.default_rng([seed, 89])
    everything, inside = set(range(total)), set(core)
    drawn = [{int(k) for k in rng.choice(total, len(inside), replace=False)} for _ in range(draws)]
    sets = [everything, set(), inside, everything - inside]
    runs = judge([*sets, *(everything - d for d in drawn), *drawn])
    sign = 2.0 * label - 1
    auc = np.asarray([roc_auc_score(label, m * sign) for m in runs])
    f = np.asarray(faithfulness(runs[0], runs[1], runs, axis=0))
    without, kept = auc[4 : 4 + draws], slice(4 + draws, None)
    gap = float(auc[0] - auc[1])
    lost = {"lost": np.nan, "lost_random": np.nan}
    if gap > max(1e-9, Z95 * drop_error(label, runs[0] * sign, runs[1] * sign)):
        lost = {"lost": (auc[0] - auc[3]) / gap, "lost_random": (auc[0] - without.mean()) / gap}
    out = {
        "auc": auc[0],
        "auc_floor": auc[1],
        "auc_kept": auc[2],
        "auc_without": auc[3],
        "auc_random": without.mean(),
        "auc_random_low": without.min(),
        "auc_random_high": without.max(),
        "auc_random_kept": auc[kept].mean(),
        "margin_kept": f[2],
        "margin_random_kept": f[kept].mean(),
        "prompts": len(label),
        "draws": draws,
        **lost,
    }
    return {name: float(value) for name, value in out.items()}


def drop_error(label: np.ndarray, before: np.ndarray, after: np.ndarray) -> float:
    """Standard error of the difference of two AUCs on the same examples; infinite with one of a label.

    Args:
        label: 0 or 1, [n].
        before, after: scores, [n].

    Related: :func:`curerec.delong.auc_drop`.

    Example:
        >>> label = np.array([0, 1, 0, 1])
        >>> score = np.array([0.1, 0.9, 0.2, 0.8])
        >>> drop_error(label, score, score), drop_error(label[:3], score[:3], score[:3])
        (0.0, inf)
    """
    few = min(int((label == 1).sum()), int((label != 1).sum())) < 2
    return float("inf") if few else auc_drop(label, before, after)[1]
