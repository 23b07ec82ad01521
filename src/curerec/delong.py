"""The difference of two AUCs on the same examples, and how well it is known."""

from __future__ import annotations

import numpy as np


def auc_drop(label: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """How far the AUC of one model lies below another's on the same examples, and its standard error.

    The two models' scores of an example are nearly equal, so their difference is known far better than
    either AUC: on 600 examples to about 0.003 where one AUC is known to 0.02.

    Args:
        label: 0 or 1, [n], at least two of each.
        before, after: scores, [n].

    Returns:
        ``AUC(before) - AUC(after)`` and its standard error.

    Source: DeLong, DeLong and Clarke-Pearson 1988 (difference of correlated areas).

    Example:
        >>> label, score = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.2, 0.8])
        >>> auc_drop(label, score, score)
        (0.0, 0.0)
    """
    parts = [_components(label, np.asarray(s, np.float64)) for s in (before, after)]
    won, lost = parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]
    variance = won.var(ddof=1) / len(won) + lost.var(ddof=1) / len(lost)
    return float(won.mean()), float(np.sqrt(variance))


def _components(label: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of negatives below each positive, and of positives above each negative, ties counted half."""
    yes, no = scores[label == 1], scores[label != 1]
    out = []
    for a, b in ((yes, no), (-no, -yes)):
        ordered = np.sort(b)
        below = np.searchsorted(ordered, a, "left") + np.searchsorted(ordered, a, "right")
        out.append(below / (2 * len(b)))
    return out[0], out[1]
