"""The best one-threshold attack in either direction: do the losses on both sets have one distribution?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from curerec.evaluation.bootstrap import Groups, resamples
from curerec.evaluation.inputs import numbers
from curerec.evaluation.metric import Metric, Value
from curerec.evaluation.scene import Scene


def advantage(
    loss_forget: np.ndarray,
    loss_control: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups | None = None,
) -> dict[str, float]:
    """Largest gap between the two distributions of the loss.

    ``max_t |F_f(t) - F_c(t)|``. The AUC is a mean over thresholds: a model that remembers one half of the
    deleted data and is silenced on the other comes out near 0.5 there, and far from 0 here. Blind to a
    common temperature, as the AUC is.

    Args:
        loss_forget: of the deleted examples, [m], nats, m >= 2.
        loss_control: of the control examples, [n], nats, n >= 2.
        draws, seed: of the bootstrap.
        groups: user of each deleted example, [m], and of each control example, [n]; draws whole users.

    Returns:
        ``value``, in [0, 1], and ``error``: what equal distributions exceed in 5 % of samples, from the
        centred bootstrap (about ``1.36 sqrt(1/m + 1/n)`` for independent rows).

    Raises:
        ConfigError: fewer than 2 examples on a side, losses that are not finite.

    Related: :func:`curerec.evaluation.membership.membership`.

    Example:
        >>> advantage(np.array([1.0, 1.0, 4.0, 4.0]), np.array([2.0, 2.0, 3.0, 3.0]), draws=20)["value"]
        0.5
    """
    between, sizes = _gap(loss_forget, loss_control)
    m, n = sizes
    seen = between(np.full((1, m), 1 / m), np.full((1, n), 1 / n))
    drawn = resamples(m, n, draws=draws, seed=seed, groups=groups)
    chance = [np.abs(between(*weights) - seen).max(1) for weights in drawn]
    return {"value": float(np.abs(seen).max()), "error": float(np.quantile(np.concatenate(chance), 0.95))}


def advantage_draws(
    loss_forget: np.ndarray,
    loss_control: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups | None = None,
) -> Float64[np.ndarray, " draws"]:
    """``value`` of :func:`advantage` in each bootstrap draw; the same seed and groups pair two models.

    A draw's largest gap is larger than the sample's, of two models by about as much, so their difference
    shows the error of comparing them.

    Args and Raises: as :func:`advantage`.

    Example:
        >>> of = np.arange(4.0), np.arange(4.0) + 0.5
        >>> bool(np.array_equal(advantage_draws(*of, draws=5), advantage_draws(*of, draws=5)))
        True
    """
    between, sizes = _gap(loss_forget, loss_control)
    drawn = resamples(*sizes, draws=draws, seed=seed, groups=groups)
    return np.concatenate([np.abs(between(*weights)).max(1) for weights in drawn])


def _gap(
    loss_forget: np.ndarray, loss_control: np.ndarray
) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], tuple[int, int]]:
    """Of weights of the rows of both sets, the gap at every threshold; and how many rows there are."""
    forget = numbers(loss_forget, "losses of the forget set", least=2)
    control = numbers(loss_control, "losses of the control set", least=2)
    pooled = np.concatenate([forget, control])
    order = np.argsort(pooled, kind="stable")
    ends = np.append(np.diff(pooled[order]) > 0, True)  # thresholds lie between distinct losses only

    def gap(weight_f: np.ndarray, weight_c: np.ndarray) -> np.ndarray:
        return np.concatenate([weight_f, -weight_c], 1)[:, order].cumsum(1)[:, ends]

    return gap, (len(forget), len(control))


def _compute(scene: Scene) -> Value:
    losses = [scene.ground.losses(scene.subject, part) for part in ("forget", "control")]
    told = advantage(*losses, draws=scene.ground.draws, seed=scene.ground.seed, groups=scene.pair)
    return Value(told["value"], n=sum(map(len, losses)), details={"error": told["error"]})


MEMBERSHIP_ADVANTAGE = Metric(
    "membership_advantage",
    1,
    "share",
    "lower",
    ("labels", "control"),
    "max over t of |share of deleted - share of control examples with loss <= t| (Kolmogorov-Smirnov); no "
    "interval, but details.error: what equal distributions exceed in 5 % of samples",
    "Yeom et al. 2018, arXiv 1709.01604 (advantage), at the best threshold, two-sided",
    _compute,
)
