"""The loss attack: can the deleted examples still be told from ones never trained on?"""

from __future__ import annotations

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation.auc import auc, auc_interval, auc_se
from curerec.evaluation.bootstrap import Groups, resamples
from curerec.evaluation.inputs import numbers


def membership(
    loss_forget: np.ndarray,
    loss_control: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups | None = None,
) -> dict[str, float]:
    """The loss attack with score ``-loss``.

    Blind to any common temperature: the loss of two answers falls strictly with the margin towards the label.

    Args:
        loss_forget: of the deleted examples, [m], nats, m >= 2.
        loss_control: of the control examples (same distribution, never trained on), [n], nats, n >= 2.
        draws, seed: of the bootstrap.
        groups: user of each deleted example, [m], and of each control example, [n]; whole users are drawn
            then, which gives the honest interval where a user has many rows.

    Returns:
        ``auc`` (0.5 = not told apart, above = remembered, below = conspicuously unknown), ``se`` (DeLong, for
        independent rows), ``low`` and ``high`` (95 % bootstrap interval), ``tpr_at_fpr_01``.

    Raises:
        ConfigError: fewer than 2 examples on a side, losses that are not finite.

    Source: Yeom et al. 2018; DeLong et al. 1988; Carlini et al. 2022 for the low false-positive end.
    Related: :func:`curerec.evaluation.utility.nll`, :func:`privleak`,
    :func:`curerec.evaluation.advantage.advantage`.

    Example:
        >>> told = membership(np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6]), draws=20)
        >>> told["auc"], told["tpr_at_fpr_01"]
        (1.0, 1.0)
    """
    forget = -numbers(loss_forget, "losses of the forget set", least=2)
    control = -numbers(loss_control, "losses of the control set", least=2)
    low, high = auc_interval(forget, control, draws=draws, seed=seed, groups=groups)
    return {
        "auc": auc(forget, control),
        "se": auc_se(forget, control),
        "low": low,
        "high": high,
        "tpr_at_fpr_01": tpr_at_fpr(forget, control),
    }


def tpr_at_fpr(positive: np.ndarray, negative: np.ndarray, fpr: float = 0.01) -> float:
    """Share of positives above a threshold that at most ``fpr`` of the negatives exceed.

    Args:
        positive: scores, [m].
        negative: scores, [n]; with fewer than ``1 / fpr`` of them no false alarm is allowed at all.
        fpr: false-positive rate allowed; the curve is not interpolated.

    Example:
        >>> tpr_at_fpr(np.array([1.0, 3.0]), np.array([0.0, 1.0, 2.0]))
        0.5
    """
    p, n = numbers(positive, "positive scores"), numbers(negative, "negative scores")
    allowed = int(fpr * len(n) + 1e-9)
    if not 0 <= fpr < 1:
        raise ConfigError("must be in [0, 1)", where="fpr")
    return float((p > np.sort(n)[len(n) - 1 - allowed]).mean())


def tpr_draws(
    positive: np.ndarray,
    negative: np.ndarray,
    fpr: float = 0.01,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups | None = None,
) -> np.ndarray:
    """:func:`tpr_at_fpr` of each bootstrap draw, [draws]; the threshold is drawn anew with the negatives.

    Args:
        positive, negative, fpr: as :func:`tpr_at_fpr`.
        draws, seed, groups: as :func:`curerec.evaluation.auc.auc_draws`.

    Example:
        >>> tpr_draws(np.array([3.0, 4.0]), np.array([0.0, 1.0]), draws=2).tolist()
        [1.0, 1.0]
    """
    p, n = numbers(positive, "positive scores"), numbers(negative, "negative scores")
    falling = np.argsort(-n, kind="stable")
    steps = np.searchsorted(-n[falling], -p, "right")  # negatives at or above each positive, ties included
    values = []
    for weight_p, weight_n in resamples(len(p), len(n), draws=draws, seed=seed, groups=groups):
        alarms = np.concatenate([np.zeros((len(weight_n), 1)), weight_n[:, falling].cumsum(1)], 1)
        values.append((weight_p * (alarms[:, steps] <= fpr + 1e-12)).sum(1))
    return np.concatenate(values)


def privleak(auc_unlearned: float, auc_retrained: float) -> float:
    """MUSE's PrivLeak in percent from two membership AUCs.

    ``100 (A_u - A_r) / A_r`` with ``A = 1 - auc``: MUSE's AUC is that of control over deleted examples, so an
    untouched model comes out near -100 and an over-forgetting one above 0.

    Args:
        auc_unlearned: ``membership(...)["auc"]`` of the unlearned model.
        auc_retrained: that of the retrained model.

    Returns:
        Percent; nan where the retrained model's AUC is 1.

    Source: Shi et al. 2024, MUSE, section 3.2; eval.py of muse_bench.

    Example:
        >>> privleak(0.75, 0.5), privleak(0.5, 0.5)
        (-50.0, 0.0)
    """
    if auc_retrained >= 1:
        return float("nan")
    return 100 * (auc_retrained - auc_unlearned) / (1 - auc_retrained)
