"""What a method gets wrong in the mean over trainings: chance is taken out of both sides."""

from __future__ import annotations

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation.inputs import MEND, probabilities

LEAST = 2  # trainings on either side: products of two different ones are what has no chance of its own in it


def systematic_error(new: np.ndarray, retrain: np.ndarray) -> float:
    """Mean over examples of ``(E[p of the unlearned] - E[p of a retrain])^2``, estimated without bias.

    A distance of two models, and so a residual, holds the chance of both trainings: of the recommender that
    a method began with as much as of the retrain. Where a request is carried out on several recommenders
    that differ in nothing but the order of their training, the mean over pairs ``k != k'`` of models and
    ``j != j'`` of retrains of ``(p_k - q_j)(p_k' - q_j')`` holds none of it: what a model's chance adds to
    one factor is independent of the other. So it is 0 in the mean for a method whose answers are a retrain's
    in expectation, however much single models scatter, and may fall below 0.

    Args:
        new: P(yes) of models unlearned from independently trained recommenders, [models, n], 2 at least.
        retrain: P(yes) of independent retrains, [retrains, n], 2 at least.

    Raises:
        ConfigError: fewer than 2 on either side, or other examples.

    Source: this project; the U-statistic of a squared difference of means (Hoeffding 1948), as in the
    unbiased squared MMD (Gretton et al. 2012, eq. 3, with a linear kernel).

    Example:
        >>> systematic_error(np.array([[0.7], [0.5]]), np.array([[0.6], [0.4]]))
        -0.01
        >>> systematic_error(np.array([[0.9], [0.9]]), np.array([[0.4], [0.4]]))
        0.25
    """
    models = _several(new, "predictions of the unlearned models")
    references = _several(retrain, "predictions of the retrained models")
    if models.shape[1] != references.shape[1]:
        raise ConfigError(
            f"shapes {models.shape} and {references.shape} do not pair", where="systematic error", mend=MEND
        )
    across = models.mean(0) * references.mean(0)
    return round(float(np.mean(_product(models) + _product(references) - 2 * across)), 12)


def _product(p: np.ndarray) -> np.ndarray:
    """Mean product of two different rows, [n]."""
    n = len(p)
    product: np.ndarray = (p.sum(0) ** 2 - (p**2).sum(0)) / (n * (n - 1))
    return product


def _several(p: np.ndarray, what: str) -> np.ndarray:
    found = probabilities(p, what)
    if found.ndim != 2 or len(found) < LEAST:
        raise ConfigError(
            f"{len(found) if found.ndim == 2 else 1} where at least {LEAST} trainings are needed",
            where=what,
            mend="Unlearn the request from several recommenders that were trained in other orders, and "
            "retrain as often; give their answers as [models, n]",
        )
    return found
