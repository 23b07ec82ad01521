"""May this version be served: the verdict, and what past unlearnings have used up of the drift budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curerec.requests.policy import Policy

RETRAIN_DUE = "a retrain is due: run `curerec request run --retrain`"
UNJUDGED = (
    "too few deleted examples for such a check to see anything, which is no pass: the batch waits for more "
    "requests, since one batch is judged as one, or for `curerec request run --retrain`, or for "
    "`accept_unjudged: true` in policy.yaml, which the record then says"
)


@dataclass(frozen=True)
class Decision:
    """Whether a version is promoted.

    Attributes:
        promoted: if not, the version in force stays.
        reasons: why not, in words.
        drift, auc_drop: spent since the last training if it is promoted.
    """

    promoted: bool
    reasons: tuple[str, ...]
    drift: float
    auc_drop: float


def used_up(policy: Policy, spent: tuple[float, float]) -> str | None:
    """Why no further unlearning may start, if so."""
    if spent[0] >= policy.drift_budget:
        return f"the drift budget is used up ({spent[0]:.3f} of {policy.drift_budget:g}); {RETRAIN_DUE}"
    if spent[1] >= policy.auc_budget:
        used = f"{spent[1]:.4f} of {policy.auc_budget:g}"
        return f"the budget for falls of the AUC is used up ({used}); {RETRAIN_DUE}"
    return None


def decide(
    policy: Policy, judged: dict[str, Any], spent: tuple[float, float], *, retrained: bool
) -> Decision:
    """Gate one version.

    The distance to the last trained version cannot be measured once that version is destroyed. The
    Jensen-Shannon distance (square root of the divergence) is a metric, so the sum of the steps bounds it.

    Args:
        policy: budgets.
        judged: answer of the verdict stage.
        spent: drift and fall of the AUC before.
        retrained: the version was trained anew: it never saw the deleted rows and starts a new budget, and
            only its use is judged.
    """
    verdict, step = judged["verdict"], judged["drift"]
    if retrained:
        drop = step["auc_drop"]
        fine = drop is not None and drop <= policy.retrain_auc_drop
        limit = f"{policy.retrain_auc_drop:g}"
        reason = f"utility: the retrained version's AUC on D_v is lower by {_number(drop)} (limit {limit})"
        return Decision(fine, () if fine else (reason,), 0.0, 0.0)
    reasons, unjudged = [], False
    for check in verdict["checks"]:
        if check["passed"] is False:
            reasons.append(
                f"{check['name']}: {_number(check['value'])} against a limit of {_number(check['limit'])}"
            )
        elif check["passed"] is None and not policy.accept_unjudged:
            reasons.append(f"{check['name']}: {check['text'].rstrip('.')}")
            unjudged = True
    if unjudged:
        reasons.append(UNJUDGED)
    distance, drop = step["distance"], step["auc_drop"]
    if distance is None or drop is None:
        return Decision(False, (*reasons, "drift: not measured"), *spent)
    drift, fall = spent[0] + distance, max(0.0, spent[1] + drop)
    if drift > policy.drift_budget:
        reasons.append(
            f"drift: {drift:.3f} would exceed the budget of {policy.drift_budget:g}; {RETRAIN_DUE}"
        )
    if fall > policy.auc_budget:
        reasons.append(
            f"drift: a fall of the AUC of {fall:.4f} would exceed {policy.auc_budget:g}; {RETRAIN_DUE}"
        )
    return Decision(not reasons, tuple(reasons), drift, fall)


def _number(value: Any) -> str:
    return "nothing" if value is None else f"{value:.4g}"
