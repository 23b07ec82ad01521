"""Metrics and attacks, one a file: pure functions of numpy arrays that know no method.

``from curerec.evaluation.membership import membership`` and so on; :data:`METRICS` describes every number. To
add a metric: one file that declares its :class:`~curerec.evaluation.metric.Metric`, and one line below.
"""

from __future__ import annotations

from curerec.evaluation import advantage, answers, divergence, membership, ranking, residual, utility
from curerec.evaluation.metric import Metric

METRICS: dict[str, Metric] = {
    "auc": utility.AUC,
    "acc": utility.ACC,
    "log_loss": utility.LOG_LOSS,
    "ece": utility.ECE,
    "ndcg_at_10": ranking.NDCG,
    "hr_at_10": ranking.HIT_RATE,
    "jsd": divergence.JSD,
    "jeffreys_half": divergence.JEFFREYS_HALF,
    "l2": divergence.L2,
    "jsd_full": divergence.JSD_FULL,
    "jsd_mean": residual.JSD_MEAN,
    "residual": residual.RESIDUAL,
    "membership_auc": membership.MEMBERSHIP_AUC,
    "membership_tpr_at_fpr_01": membership.TPR_AT_FPR_01,
    "membership_advantage": advantage.MEMBERSHIP_ADVANTAGE,
    "membership_gap": membership.MEMBERSHIP_GAP,
    "privleak": membership.PRIVLEAK,
    "answers_gap": answers.ANSWERS_GAP,
}
