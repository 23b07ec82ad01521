"""What became of the prompts that counterfactuals were made for."""

from __future__ import annotations

import numpy as np

from curerec.circuits.passes import MOVED


def outcomes(full: np.ndarray, empty: np.ndarray) -> dict[str, int]:
    """How many pairs moved, fell and flipped.

    Args:
        full, empty: margins of the clean and of the wholly patched run, [n], logits.

    Returns:
        ``moved`` (by more than :data:`curerec.circuits.passes.MOVED`), ``fell`` (what was replaced argued for
        the label) and ``flipped`` (the answer turned round).

    Source: METHOD section 2.

    Example:
        >>> outcomes(np.array([1.0, 1.0, -1.0]), np.array([-1.0, 1.0, -0.5]))
        {'moved': 2, 'fell': 1, 'flipped': 1}
    """
    return {
        "moved": int((np.abs(full - empty) > MOVED).sum()),
        "fell": int((full > empty).sum()),
        "flipped": int(((full > 0) != (empty > 0)).sum()),
    }
