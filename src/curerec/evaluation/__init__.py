"""Metrics and attacks: each says what it is, what it needs and costs, and computes itself or says why not.

They know no method. :data:`METRICS` lists every one; :func:`curerec.evaluation.metric.evaluate` computes one
on a :class:`curerec.evaluation.scene.Scene`. To add a metric or an attack: one file that declares its
:class:`~curerec.evaluation.metric.Metric`, and one line below.
"""

from __future__ import annotations

from curerec.evaluation import (
    advantage,
    answers,
    cost,
    depth,
    distance,
    excess,
    loss_attack,
    on_test,
    quantise,
    ranking,
    relearn,
    residual,
    ulira,
)
from curerec.evaluation.metric import Metric

METRICS: dict[str, Metric] = {
    **on_test.ON_TEST,
    **on_test.ON_OTHERS,
    **on_test.BY_QUINTILE,
    "valid_auc": on_test.VALID_AUC,
    "ndcg_at_10": ranking.NDCG,
    "hr_at_10": ranking.HIT_RATE,
    **distance.ANSWERS,
    **distance.WORDS,
    "jsd_mean": residual.JSD_MEAN,
    "residual": residual.RESIDUAL,
    "excess_jsd": excess.EXCESS_JSD,
    "excess_residual": excess.EXCESS_RESIDUAL,
    "membership_auc": loss_attack.MEMBERSHIP_AUC,
    "membership_tpr_at_fpr_01": loss_attack.TPR_AT_FPR_01,
    "membership_gap": loss_attack.MEMBERSHIP_GAP,
    "membership_tpr_gap": loss_attack.TPR_GAP,
    "membership_advantage": advantage.MEMBERSHIP_ADVANTAGE,
    "privleak": loss_attack.PRIVLEAK,
    "answers_gap": answers.ANSWERS_GAP,
    "ulira_auc": ulira.ULIRA_AUC,
    "ulira_tpr_at_fpr_01": ulira.ULIRA_TPR,
    "relearn_steps": relearn.RELEARN_STEPS,
    "relearn_ratio": relearn.RELEARN_RATIO,
    **quantise.QUANTISED,
    "depth": depth.DEPTH,
    "t_core_s": cost.T_CORE,
    "t_total_s": cost.T_TOTAL,
    "retrain_ratio": cost.RETRAIN_RATIO,
    "n_trainable": cost.N_TRAINABLE,
    "peak_mem_bytes": cost.PEAK_MEMORY,
    "mem_rise_bytes": cost.MEM_RISE,
    "forward_equivalents": cost.FORWARDS,
    "forward_ratio": cost.FORWARD_RATIO,
}
