"""The metrics of the loss attack: AUC, low false alarms, gap to the retrained models, PrivLeak."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from curerec.evaluation.auc import auc, auc_draws
from curerec.evaluation.bootstrap import Groups, interval_of_two
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.membership import privleak, tpr_at_fpr, tpr_draws
from curerec.evaluation.metric import Metric, Value
from curerec.evaluation.scene import Scene

_SOURCE = "Yeom et al. 2018, arXiv 1709.01604 (loss attack)"
_LOW_END = "Carlini et al. 2022, arXiv 2112.03570"
FPR = 0.01

#: A number of two sets of scores, and the same of every bootstrap draw.
Point = Callable[[np.ndarray, np.ndarray], float]
Draws = Callable[..., np.ndarray]


def attacked(scene: Scene, one: Candidate, point: Point, spread: Draws) -> tuple[float, np.ndarray]:
    """A number of the loss attack on a model and its bootstrap draws, computed once a model.

    All models of one request are drawn with the same seed and users, so that their draws pair.
    """
    ground = scene.ground
    key = ("loss_attack", point.__name__, ground.draws, ground.seed)
    if key not in one.memo:
        scores = [-ground.losses(one, part) for part in ("forget", "control")]
        groups: Groups = scene.pair
        drawn = spread(*scores, draws=ground.draws, seed=ground.seed, groups=groups)
        one.memo[key] = point(*scores), drawn
    return one.memo[key]


def _alone(point: Point, spread: Draws) -> Callable[[Scene], Value]:
    def compute(scene: Scene) -> Value:
        value, drawn = attacked(scene, scene.subject, point, spread)
        return Value(value, *interval_of_two(drawn, scene.pair), n=sum(map(len, scene.pair)))

    return compute


def _against(point: Point, spread: Draws, compare: Callable[[np.ndarray, np.ndarray], np.ndarray]):
    """Compared with the mean over the retrained models; the interval is of the paired draws."""

    def compute(scene: Scene) -> Value:
        mine, drawn = attacked(scene, scene.subject, point, spread)
        others = [attacked(scene, r, point, spread) for r in scene.retrains]
        theirs = np.array(np.mean([value for value, _ in others]))
        apart = compare(drawn, np.mean([d for _, d in others], axis=0))
        low, high = interval_of_two(apart, scene.pair)
        return Value(float(compare(np.array(mine), theirs)), low, high, n=sum(map(len, scene.pair)))

    return compute


def _privleak(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.vectorize(privleak, otypes=[float])(mine, theirs)


MEMBERSHIP_AUC = Metric(
    "membership_auc",
    2,  # 1 had an interval of fewer than five rows, too
    "share",
    "target",
    ("labels", "control"),
    "chance that a deleted example has a lower loss than a control example; above 0.5 = remembered",
    _SOURCE,
    _alone(auc, auc_draws),
    target=0.5,
    interval="membership",
)
TPR_AT_FPR_01 = Metric(
    "membership_tpr_at_fpr_01",
    2,  # 1 had an interval of fewer than five rows, too
    "share",
    "target",
    ("labels", "control"),
    "share of deleted examples whose loss is below that of all but 1 % of the control examples",
    _LOW_END,
    _alone(tpr_at_fpr, tpr_draws),
    target=FPR,
)
MEMBERSHIP_GAP = Metric(
    "membership_gap",
    2,  # 1 had an interval of fewer than five rows, too
    "share",
    "target",
    ("labels", "control", "retrain"),
    "membership_auc minus the mean over the retrained models; paired bootstrap over users",
    "this project",
    _against(auc, auc_draws, np.subtract),
    target=0.0,
)
TPR_GAP = Metric(
    "membership_tpr_gap",
    2,  # 1 had an interval of fewer than five rows, too
    "share",
    "target",
    ("labels", "control", "retrain"),
    "membership_tpr_at_fpr_01 minus the mean over the retrained models; paired bootstrap over users",
    "this project",
    _against(tpr_at_fpr, tpr_draws, np.subtract),
    target=0.0,
)
PRIVLEAK = Metric(
    "privleak",
    2,  # 1 had an interval of fewer than five rows, too
    "percent",
    "target",
    ("labels", "control", "retrain"),
    "100 (AUC_r - AUC) / (1 - AUC_r), AUC = membership_auc; below 0 = remembered, above = over-forgotten",
    "MUSE, arXiv 2407.06460, with the loss in the place of Min-K%",
    _against(auc, auc_draws, _privleak),
    target=0.0,
)
