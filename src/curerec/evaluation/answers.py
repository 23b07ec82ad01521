"""Does the model still answer about the deleted data as about unseen data, or was it silenced there?"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from curerec.evaluation.auc import Ranked, auc, auc_se
from curerec.evaluation.bootstrap import Groups, interval_of_two, resamples
from curerec.evaluation.inputs import labels, margin
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Scene


def answers(
    forget_logits: np.ndarray,
    forget_label: np.ndarray,
    control_logits: np.ndarray,
    control_label: np.ndarray,
) -> dict[str, Any]:
    """Utility on the deleted examples against utility on the control examples.

    A retrained model never saw either set and ranks likes above dislikes equally well in both. A filter that
    blocks forgotten users leaves no information in its answers about them, whatever constant it returns,
    while its membership AUC can be brought to 0.5 by choosing that constant.

    Args:
        forget_logits: [m, 2], or margins [m].
        forget_label: 0 or 1, [m].
        control_logits: [n, 2], or margins [n].
        control_label: 0 or 1, [n].

    Returns:
        ``forget`` and ``control`` (AUCs), ``gap`` (their difference) and ``se`` (of the gap; DeLong);
        ``missing``: the reason where these are nan.

    Source: this project, PROTOCOL section 3 (the fourth fake).

    Example:
        >>> y = np.array([0, 0, 1, 1])
        >>> answers(np.zeros(4), y, np.array([-1.0, -2.0, 1.0, 2.0]), y)["gap"]
        -0.5
    """
    found: list[tuple[float, float]] = []
    for logits, label in ((forget_logits, forget_label), (control_logits, control_label)):
        z = margin(logits)
        y = labels(label, len(z))
        if min(y.sum(), (~y).sum()) < 2:
            values = dict.fromkeys(("forget", "control", "gap", "se"), float("nan"))
            return {**values, "missing": dict.fromkeys(values, "fewer than 2 likes or dislikes in a set")}
        found.append((auc(z[y], z[~y]), auc_se(z[y], z[~y])))
    (forget, forget_se), (control, control_se) = found
    se = float(np.hypot(forget_se, control_se))
    return {"forget": forget, "control": control, "gap": forget - control, "se": se, "missing": {}}


def gap_draws(
    forget_logits: np.ndarray,
    forget_label: np.ndarray,
    control_logits: np.ndarray,
    control_label: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups | None = None,
) -> Float64[np.ndarray, " draws"]:
    """``gap`` of :func:`answers` in each bootstrap draw; the same seed and groups pair two models.

    Whether a user's likes can be told from the dislikes is a matter of the user too, so the gap between two
    sets of users is not 0 for a model that saw neither; what a model without either set shows is its
    measure, and the paired difference of the draws the error of comparing with it. A model that answers worse
    all over shows such a gap smaller than a better one does: a weak base takes out a part of it only.

    Args:
        forget_logits, forget_label, control_logits, control_label: as :func:`answers`.
        draws, seed: of the bootstrap.
        groups: user of each deleted example, [m], and of each control example, [n]; draws whole users.

    Returns:
        Gaps; nan in a draw in which a set held one class only.

    Example:
        >>> y, z = np.array([0, 1, 0, 1]), np.arange(4.0)
        >>> paired = [gap_draws(z, y, -z, y, draws=5), gap_draws(z, y, -z, y, draws=5)]
        >>> bool(np.array_equal(*paired, equal_nan=True))
        True
    """
    sides = [
        (Ranked(z[y], z[~y]), y)
        for z, y in (
            (margin(logits), labels(label, len(logits)))
            for logits, label in ((forget_logits, forget_label), (control_logits, control_label))
        )
    ]
    sizes = (len(y) for _, y in sides)
    gaps = []
    for weights in resamples(*sizes, draws=draws, seed=seed, groups=groups):
        forget, control = (
            ranked.auc(w[:, y], w[:, ~y]) for (ranked, y), w in zip(sides, weights, strict=True)
        )
        gaps.append(forget - control)
    return np.concatenate(gaps)


def _compute(scene: Scene) -> Value:
    sides = []
    for part in ("forget", "control"):
        sides += [scene.ground.logits(scene.subject, part), scene.ground.part(part).label]
    said = answers(*sides)
    if reason := said["missing"].get("gap"):
        raise CannotError(reason)
    drawn = gap_draws(*sides, draws=scene.ground.draws, seed=scene.ground.seed, groups=scene.pair)
    low, high = interval_of_two(drawn[np.isfinite(drawn)], scene.pair)
    return Value(said["gap"], low, high, n=len(sides[1]) + len(sides[3]))


ANSWERS_GAP = Metric(
    "answers_gap",
    3,  # 1 had DeLong's interval, of rows; 2 one of fewer than five rows, too
    "share",
    "target",
    ("labels", "control"),
    "AUC of the answers on the deleted examples minus that on the control examples; below 0 = silenced there",
    "this project",
    _compute,
    target=0.0,
)
