"""The verdict on a model: what the eight checks are told, measured from D_f, D_c and D_v."""

from __future__ import annotations

from typing import Any

import numpy as np

from curerec.evaluation.advantage import advantage, advantage_draws
from curerec.evaluation.answers import answers, gap_draws
from curerec.evaluation.auc import auc, auc_draws
from curerec.evaluation.bootstrap import LEAST_USERS, Groups
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.guard import probes_changed
from curerec.evaluation.left_alone import deleted_entities, left_alone
from curerec.evaluation.membership import membership
from curerec.evaluation.scene import Ground
from curerec.evaluation.utility import auc_drop, ece_rise, utility
from curerec.evaluation.verdict import Limits, destroyed, verdict
from curerec.measure import ground_of
from curerec.methods.expected import Expected, expected_membership
from curerec.methods.task import Task
from curerec.opened import Opened, answers_at_hand
from curerec.records import ForgetSplit


def judge(
    opened: Opened,
    split: ForgetSplit,
    original: Candidate,
    new: Candidate,
    base: Candidate,
    *,
    limits: Limits | None = None,
    ground: Ground | None = None,
) -> dict[str, Any]:
    """The verdict on an unlearned model, from D_f, D_c and D_v alone.

    Membership is judged against what is expected of a model that never saw D_f
    (:func:`curerec.methods.expected.expected_membership`: D_f is held against half of D_c, and the other half
    and D_r tell how that follows from the base's and the original's answers); where D_c or D_r has too few
    people for that, and the answers always, against the base model, which was fine-tuned on neither D_f nor
    D_c: its own numbers carry what tells the two sets, and their users, apart by chance.

    Args:
        opened, split: the recommender and the request.
        original, new: scored where ``measure`` has not done it already.
        base: the model before fine-tuning; given to several calls it is scored once.
        limits: thresholds.
        ground: where one is at hand already.

    Returns:
        ``verified`` (True, False or None) and ``checks``; of answers that are not finite a failure.
    """
    ground = ground or ground_of(opened, split)
    groups = (ground.user("forget"), ground.user("control"))

    def losses(one: Candidate) -> list[np.ndarray]:
        return [ground.losses(one, part) for part in ("forget", "control")]

    if not all(np.isfinite(ground.logits(new, part)).all() for part in ("forget", "control", "valid")):
        return destroyed()
    limits = limits or Limits()
    now, was, before = losses(new), losses(original), losses(base)
    valid = [ground.logits(c, "valid") for c in (original, new)]
    known = utility(valid[0], split.valid.label)["auc"]
    worse = ece_rise(valid[0], valid[1], split.valid.label, groups=ground.user("valid"))
    lost = auc_drop(valid[0], valid[1], split.valid.label, groups=ground.user("valid"))
    probes = ground.logits(original, "forget"), ground.logits(new, "forget")
    told: dict[str, Any] = dict.fromkeys(
        ("membership_auc", "membership_error", "membership_original", "advantage", "advantage_error")
    ) | dict.fromkeys(("answers_gap", "answers_se", "answers_control"))
    # Of fewer examples draws tell too little of the error: an honest model would fail. Not judged then.
    if min(map(len, now)) >= LEAST_USERS:
        expected = _expected(opened, ground, original, base)
        apart, chance = advantage(*now, groups=groups), advantage(*before, groups=groups)
        wider = np.subtract(*(advantage_draws(*one, groups=groups) for one in (now, before)))
        sides = [_sides(ground, one) for one in (new, base)]
        said, unsaid = (answers(*side) for side in sides)
        drawn = np.subtract(*(gap_draws(*side, groups=groups) for side in sides))
        drawn = drawn[np.isfinite(drawn)]
        told = {
            **(
                _by_base(now, was, before, groups)
                if expected is None
                else _by_expectation(now, was, expected, limits)
            ),
            "advantage": apart["value"],
            "advantage_error": limits.z * float(wider.std(ddof=1)),
            "advantage_target": chance["value"],
            "answers_gap": said["gap"],
            "answers_se": float(drawn.std(ddof=1)) if len(drawn) > 1 else None,
            "answers_control": said["control"],
            "answers_target": unsaid["gap"],
        }
    return verdict(
        probes_changed=probes_changed(*probes),
        auc_drop=lost["drop"],
        auc_drop_se=lost["se"],
        auc_original=known,
        ece_rise=worse["rise"],
        ece_rise_se=worse["se"],
        limits=limits,
        **_of_control(ground, original, new),
        **_one_by_one(ground, original, new),
        **told,
    )


def _of_control(ground: Ground, original: Candidate, new: Candidate) -> dict[str, Any]:
    """How much better the loss attack tells D_c from D_v than it did, over users.

    D_v is later than D_c, so the AUC itself is not .5; that is the same for both models.
    """
    groups = ground.user("control"), ground.user("valid")
    if min(map(len, groups)) < 2:
        return {"control_rise": None, "control_rise_se": None}
    sides = [[-ground.losses(one, part) for part in ("control", "valid")] for one in (new, original)]
    now, was = (auc(*side) for side in sides)
    drawn = np.subtract(*(auc_draws(*side, groups=groups) for side in sides))
    return {"control_rise": now - was, "control_rise_se": float(drawn.std(ddof=1))}


def _one_by_one(ground: Ground, original: Candidate, new: Candidate) -> dict[str, float]:
    """Share of the deleted about whom the weights answer as before, and what chance allows."""
    sides = [(ground.memory(original, part), ground.memory(new, part)) for part in ("forget", "control")]
    if "entities" not in ground.memo:
        ground.memo["entities"] = deleted_entities(ground.data, ground.split)
    found = left_alone(sides[0], sides[1], ground.memo["entities"], seed=ground.seed)
    return {"left_share": found["share"], "left_limit": found["limit"]}


def _by_base(
    now: list[np.ndarray], was: list[np.ndarray], before: list[np.ndarray], groups: Groups
) -> dict[str, float]:
    """Membership, and its error by a bootstrap of users, against the base's."""
    attack = membership(*now, groups=groups)
    return {
        "membership_auc": attack["auc"],
        "membership_error": (attack["high"] - attack["low"]) / 2,
        "membership_original": membership(*was, groups=groups)["auc"],
        "membership_target": membership(*before, groups=groups)["auc"],
    }


def _by_expectation(
    now: list[np.ndarray], was: list[np.ndarray], expected: Expected, limits: Limits
) -> dict[str, float]:
    """Membership against what a model that never saw D_f would show, by half of D_c."""
    shown = [auc(-forget, -control[expected.reference]) for forget, control in (now, was)]
    return {
        "membership_auc": shown[0],
        "membership_error": limits.z * expected.error,
        "membership_original": shown[1],
        "membership_target": expected.auc,
    }


def _expected(opened: Opened, ground: Ground, original: Candidate, base: Candidate) -> Expected | None:
    """Worked out once for all models of a request."""
    if "expected" not in ground.memo:
        task = Task.of(
            ground.split,
            original=opened.recommender,
            base_state=None,
            data=opened.data,
            tuning=opened.recipe.model.tuning,
            fresh=lambda: base.model,
            answered=answers_at_hand(opened),
        )
        forget, control = (
            (ground.memory(base, part), ground.memory(original, part)) for part in ("forget", "control")
        )
        ground.memo["expected"] = expected_membership(task, forget, control)
    found: Expected | None = ground.memo["expected"]
    return found


def _sides(ground: Ground, one: Candidate) -> tuple[np.ndarray, ...]:
    """Logits and labels on D_f, then on D_c."""
    parts = ("forget", "control")
    return tuple(x for part in parts for x in (ground.logits(one, part), ground.part(part).label))
