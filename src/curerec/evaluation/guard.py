"""Nothing happened: refuse to report a method that left the predictions as they were."""

from __future__ import annotations

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation.inputs import MEND, p_yes, same_length

PROBES = 32
TOL = 1e-5  # of P(yes): above what another batch size changes in float32, below what any update is for


def probes_changed(
    original_logits: np.ndarray, new_logits: np.ndarray, probes: int = PROBES, tol: float = TOL
) -> int:
    """Number of probe prompts whose P(yes) moved by more than ``tol``.

    Args:
        original_logits: [n, 2], or margins [n], before.
        new_logits: of the same prompts after.
        probes: so many rows are compared, evenly spread over the n (all where n is smaller).
        tol: change of P(yes) that counts as none.

    Raises:
        ConfigError: no prompts, lengths that differ, logits that are not finite.

    Example:
        >>> probes_changed(np.zeros(100), np.ones(100))
        32
    """
    before, after = p_yes(original_logits), p_yes(new_logits)
    same_length(before, after, what="probe prompts")
    if probes < 1:
        raise ConfigError("must be at least 1", where="probes", mend=MEND)
    rows = np.unique(np.linspace(0, len(before) - 1, min(probes, len(before))).astype(int))
    return int((np.abs(before[rows] - after[rows]) > tol).sum())


def nothing_happened(
    original_logits: np.ndarray, new_logits: np.ndarray, probes: int = PROBES, tol: float = TOL
) -> bool:
    """Whether the predictions on all probe prompts are equal, within ``tol`` of P(yes).

    Args and Raises: as :func:`probes_changed`.

    Source: this project, PROTOCOL section 2.

    Example:
        >>> nothing_happened(np.zeros(100), np.zeros(100))
        True
    """
    return probes_changed(original_logits, new_logits, probes, tol) == 0
