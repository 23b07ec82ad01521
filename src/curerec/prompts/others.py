"""Counterfactual prompts of another kind: the whole prompt of somebody else, token for token as long."""

from __future__ import annotations

import numpy as np

from curerec.errors import PromptError
from curerec.prompts.encoding import Prompts


def other_prompts(prompts: Prompts, *, opposite: bool = True, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A partner for each prompt: another prompt of the same number of tokens.

    Replacing history items leaves the candidate's own evidence and the number of likes and dislikes in the
    prompt, so a model that leans on those hardly moves. Activations of a partner carry nothing of the prompt:
    with everything patched the answer is the partner's (resample ablation).

    Args:
        prompts: [n].
        opposite: the partner's label is the other one, so that the margin turns round; without it the label
            is whatever was drawn, so that everything patched is at chance.
        seed: of the draws.

    Returns:
        Prompts that have a partner, int [m], and their partners, int [m], both indices into ``prompts``.

    Raises:
        PromptError: no prompt has one.

    Source: Chan et al. 2022 (causal scrubbing, resample ablation); equal length is this project's.

    Example:
        >>> offsets = np.array([0, 2, 4, 7])
        >>> p = Prompts(np.arange(7), offsets, np.zeros((0, 5), np.int32), np.array([1, 0, 0], np.int8))
        >>> [i.tolist() for i in other_prompts(p)]
        [[0, 1], [1, 0]]
    """
    rng = np.random.default_rng([seed, 83])
    kept, partner = [], []
    by_length: dict[int, np.ndarray] = {
        int(n): np.flatnonzero(prompts.lengths == n) for n in np.unique(prompts.lengths)
    }
    for k, length in enumerate(prompts.lengths):
        pool = by_length[int(length)]
        pool = pool[prompts.label[pool] != prompts.label[k]] if opposite else pool[pool != k]
        if len(pool):
            kept.append(k)
            partner.append(int(rng.choice(pool)))
    if not kept:
        raise PromptError(
            "no two prompts have the same number of tokens",
            where="counterfactuals",
            mend="Draw from more prompts",
        )
    return np.asarray(kept), np.asarray(partner)
