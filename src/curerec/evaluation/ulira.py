"""U-LiRA: a likelihood-ratio attack that knows how the unlearning method treats this very example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.stats import norm

from curerec.evaluation.auc import auc, auc_draws
from curerec.evaluation.bootstrap import interval_of_two
from curerec.evaluation.inputs import margin, numbers
from curerec.evaluation.membership import tpr_at_fpr, tpr_draws
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Scene

LEAST = 16  # shadows, PROTOCOL section 2
PRIOR = 8.0  # draws that the pooled variance counts as


@dataclass(frozen=True)
class Shadows:
    """What shadow models said of the target's deleted and control examples, after unlearning.

    Attributes:
        margins: towards the label, [shadows, n]: the log odds of the true answer.
        inside: bool [shadows, n], whether the shadow was trained on the example and then unlearned it; where
            not, it never saw it.
        forget: int [m], which of D_f the first m columns are.
        control: int [n - m], which of D_c the others are.
    """

    margins: np.ndarray
    inside: np.ndarray
    forget: np.ndarray
    control: np.ndarray


def towards(logits: np.ndarray, label: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Log odds of the true answer, ``(2y - 1)(z_yes - z_no)``, [n].

    Example:
        >>> towards(np.array([[0.0, 2.0], [0.0, 2.0]]), np.array([1, 0])).tolist()
        [2.0, -2.0]
    """
    return margin(logits) * (2.0 * np.asarray(label) - 1)


def fits(values: np.ndarray, chosen: np.ndarray, *, prior: float = PRIOR) -> tuple[np.ndarray, np.ndarray]:
    """A normal distribution for each example from the shadows chosen for it.

    Mean: of its own values. Variance: ``((k - 1) s_i^2 + prior s^2) / (k - 1 + prior)``, s^2 the mean of all
    s_i^2: with few shadows an example's own variance is mostly noise (Carlini et al. use the pooled one below
    64 shadows), with many it takes over.

    Args:
        values: [shadows, n].
        chosen: bool [shadows, n].
        prior: weight of the pooled variance, in draws.

    Returns:
        mean and standard deviation, [n] each; nan where an example has fewer than 2 values.
    """
    k = chosen.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(chosen, values, 0).sum(0) / k
        own = np.where(chosen, (values - mean) ** 2, 0).sum(0) / (k - 1)
    pooled = np.nanmean(own[k >= 2]) if (k >= 2).any() else np.nan
    shrunk = ((k - 1) * own + prior * pooled) / (k - 1 + prior)
    mean, deviation = np.where(k >= 2, mean, np.nan), np.sqrt(np.maximum(shrunk, 1e-12))
    return mean, np.where(k >= 2, deviation, np.nan)


def ratios(target: np.ndarray, margins: np.ndarray, inside: np.ndarray) -> Float64[np.ndarray, " n"]:
    """Log-likelihood ratio of each example: trained on and unlearned, against never seen.

    ``log N(t_i; mu_in,i, s_in,i) - log N(t_i; mu_out,i, s_out,i)``

    Args:
        target: margins towards the label of the model under attack, [n].
        margins: of the shadows, [shadows, n].
        inside: bool [shadows, n].

    Returns:
        float64 [n]; nan where a side has fewer than 2 shadows.

    Source: Hayes et al. 2024 (U-LiRA), arXiv 2403.01218; Kurmanji et al. 2023, arXiv 2302.09880; Gaussian
    fits on log odds: Carlini et al. 2022, arXiv 2112.03570.

    Example:
        >>> shadows = np.array([[1.9], [2.1], [-0.1], [0.1]])
        >>> inside = np.array([[True], [True], [False], [False]])
        >>> bool(ratios(np.array([2.0]), shadows, inside)[0] > 0)
        True
    """
    t = numbers(target, "margins of the target")
    mean_in, spread_in = fits(margins, inside)
    mean_out, spread_out = fits(margins, ~inside)
    return np.asarray(norm.logpdf(t, mean_in, spread_in) - norm.logpdf(t, mean_out, spread_out))


def _scores(scene: Scene) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], dict[str, int]]:
    """Ratios of the deleted and of the control examples, and their users."""
    shadows: Shadows | str | None = scene.shadows
    if isinstance(shadows, str):
        raise CannotError(shadows, mend="Make shadows of its settings: curerec.shadows, config")
    made = 0 if shadows is None else len(shadows.margins)
    if shadows is None or made < LEAST:
        raise CannotError(
            f"{made} of at least {LEAST} shadow models are there",
            mend="Make them with curerec.shadows, which goes on where it stopped",
        )
    ground, one = scene.ground, scene.subject
    rows = {"forget": shadows.forget, "control": shadows.control}
    target = [towards(ground.memory(one, p)[r], ground.part(p).label[r]) for p, r in rows.items()]
    found = ratios(np.concatenate(target), shadows.margins, shadows.inside)
    m, sure = len(shadows.forget), np.isfinite(found)
    users = np.concatenate([ground.user(p)[r] for p, r in rows.items()])
    first = np.arange(len(found)) < m
    sides = sure & first, sure & ~first
    if min(side.sum() for side in sides) < 2:
        raise CannotError("fewer than 2 examples a side have 2 shadows of either kind")
    return found[sides[0]], found[sides[1]], (users[sides[0]], users[sides[1]]), {"shadows": made}


def _measured(point, spread):
    def compute(scene: Scene) -> Value:
        positive, negative, groups, details = _scores(scene)
        drawn = spread(positive, negative, draws=scene.ground.draws, seed=scene.ground.seed, groups=groups)
        value = point(positive, negative)
        low, high = interval_of_two(drawn, groups)
        return Value(value, low, high, n=len(positive) + len(negative), details=details)

    return compute


_SOURCE = "Hayes et al. 2024, arXiv 2403.01218 (U-LiRA); Kurmanji et al. 2023, arXiv 2302.09880"
ULIRA_AUC = Metric(
    "ulira_auc",
    2,  # 1 had an interval of fewer than five rows, too
    "share",
    "target",
    ("labels", "control"),
    "chance that a deleted example has a higher likelihood ratio than a control example, both under normal "
    "fits to at least 16 shadow models that unlearned it or never saw it",
    _SOURCE,
    _measured(auc, auc_draws),
    target=0.5,
    cost="shadows",
)
ULIRA_TPR = Metric(
    "ulira_tpr_at_fpr_01",
    2,  # 1 had an interval of fewer than five rows, too
    "share",
    "target",
    ("labels", "control"),
    "share of deleted examples whose likelihood ratio is above that of all but 1 % of the control examples",
    _SOURCE,
    _measured(tpr_at_fpr, tpr_draws),
    target=0.01,
    cost="shadows",
)
