"""Was the request fulfilled: eight checks from D_f, D_c and D_v alone, as they can be made in production."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

from curerec.evaluation.auc import Z95

UNMEASURED = "Not judged: not measured."


@dataclass(frozen=True)
class Limits:
    """What a check allows.

    Attributes:
        auc_drop: of the AUC on D_v that is no loss yet (METHOD section 8).
        ece_rise: of the calibration error on D_v [ours].
        membership_gap: of the membership AUC, in either direction, that is as good as none [ours]: with
            enough examples any difference shows.
        control_rise: of the AUC of the loss attack on D_c against D_v, over the original's [ours]: that of
            retrains scatters by .004, D_c remembered as D_f is shows as .08 (``benchmarks/quality/verdict``).
        z: sampling errors that a difference may amount to.
        power: the original must lie so many sampling errors (of ``z``) off the target, else forgetting could
            not be seen and a pass means nothing (as the protocol's ``ceiling >= 2 floor``); so must what it
            knows off .5, else neither destruction nor blocking could.
        left: of the deleted that must not go unseen: where chance allows so many, a pass means nothing.
        remembered: rise of the AUC on D_c that must not go unseen either: what D_c shows once it is
            remembered as D_f is (``benchmarks/quality/verdict``).
    """

    auc_drop: float = 0.002
    ece_rise: float = 0.02
    membership_gap: float = 0.02
    control_rise: float = 0.01
    z: float = Z95
    power: float = 2.0
    left: float = 0.5
    remembered: float = 0.08


def verdict(
    *,
    probes_changed: float | None,
    membership_auc: float | None,
    membership_error: float | None,
    membership_original: float | None,
    advantage: float | None,
    advantage_error: float | None,
    control_rise: float | None,
    control_rise_se: float | None,
    left_share: float | None,
    left_limit: float | None,
    auc_drop: float | None,
    auc_drop_se: float | None,
    auc_original: float | None,
    ece_rise: float | None,
    ece_rise_se: float | None,
    answers_gap: float | None,
    answers_se: float | None,
    answers_control: float | None,
    membership_target: float = 0.5,
    advantage_target: float = 0.0,
    answers_target: float = 0.0,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """The eight checks and what follows from them.

    ================= ============================== =====================================================
    check             passes where                   the fake that it is for
    ================= ============================== =====================================================
    something_changed a probe prompt moved           does nothing
    membership        \\|AUC - target\\| <= error,     only changes the temperature: the ranking of the losses
                  .02 at the least               is the original's at any temperature
    distribution      advantage - target <= error    blocks some forgotten users, remembers others: their
                                                     mean, the AUC, does not tell that from forgetting
    control_unseen    AUC of D_c against D_v rose    trains on D_c: what all is held against is remembered
                      by no more than .01 and error  then, so the deleted data no longer stand out
    all_reached       no more of the deleted people  leaves some of the people as they were: a mean over
                      answered as before than chance all does not show them
    utility           AUC drop on D_v <= limit and   destroys the model
                      its sampling error
    calibration       ECE rise on D_v <= limit and   only changes the temperature (seen where the original
                      its sampling error             was calibrated), destroys the model
    deleted_answers   AUC on D_f - AUC on D_c >=     blocks forgotten users at the prompt: constant, random or
                      target, less its sampling      foreign answers hold less than those on unseen data
                      error
    ================= ============================== =====================================================

    The membership check is two-sided: answers that are conspicuously bad mark the deleted data as well. A
    filter outside of the weights that imitates answers on unseen data passes any test of answers alone; so
    the numbers given here must come from the saved weights by themselves, without the serving stack.

    A check fails where the sample shows that something is wrong: a retrain on the remaining data, which has
    nothing to hide, should pass as often as its error says (``benchmarks/quality/verdict``). A drop of the
    AUC is therefore held against its sampling error as well; without it a quarter to a half of all retrains
    failed by a drop that the next sample of D_v would not have shown.

    Args:
        probes_changed: of :func:`curerec.evaluation.guard.probes_changed`.
        membership_auc: of the unlearned model.
        membership_error: half-width of the 95 % interval of what a model without memory would show: around
            what is expected of one (:mod:`curerec.methods.expected`), else of the AUC itself.
        membership_original: membership AUC of the original.
        advantage: ``value`` of :func:`curerec.evaluation.advantage.advantage`.
        advantage_error: half-width of the 95 % interval of ``advantage - advantage_target``.
        control_rise: how much better the loss attack tells D_c from D_v than against the original.
        control_rise_se: its standard error.
        left_share, left_limit: ``share`` and ``limit`` of
            :func:`curerec.evaluation.left_alone.left_alone`.
        auc_drop: AUC on D_v of the original minus that of the unlearned model.
        auc_drop_se: its standard error, over users, the same for both models
            (:func:`curerec.evaluation.utility.auc_drop`).
        auc_original: AUC on D_v of the original.
        ece_rise, ece_rise_se: calibration error on D_v of the unlearned model minus that of the original, and
            its standard error (:func:`curerec.evaluation.utility.ece_rise`).
        answers_gap, answers_control: ``gap`` and ``control`` of :func:`curerec.evaluation.answers.answers`.
        answers_se: standard error of ``answers_gap - answers_target``.
        membership_target, advantage_target, answers_target: 0.5, 0 and 0, or those of a model that saw
            neither set, or what is expected of one.
        limits: what is allowed.

    Returns:
        ``verified``: False where a check failed, else None where one could not be judged, else True;
        ``checks``: dicts of ``name``, ``passed`` (None: not judged), ``value``, ``limit``, ``text``.

    Source: METHOD section 8, PROTOCOL section 3; the checks are this project's.

    Example:
        >>> told = verdict(
        ...     probes_changed=32, membership_auc=0.51, membership_error=0.03, membership_original=0.6,
        ...     advantage=0.04, advantage_error=0.05, control_rise=0.0, control_rise_se=0.002,
        ...     left_share=0.02, left_limit=0.07,
        ...     auc_drop=0.001, auc_drop_se=0.003,
        ...     auc_original=0.7, ece_rise=0.0, ece_rise_se=0.01, answers_gap=-0.01, answers_se=0.02,
        ...     answers_control=0.75,
        ... )
        >>> told["verified"], sum(check["passed"] for check in told["checks"])
        (True, 8)
    """
    allowed = limits or Limits()
    gap = _minus(membership_auc, membership_target)
    before = _minus(membership_original, membership_target)
    error = _finite(membership_error)
    least_gap = None if error is None else max(allowed.membership_gap, error)
    told_by = None if least_gap is None else allowed.power * least_gap
    shortfall = _minus(answers_target, answers_gap)
    answers_error = None if answers_se is None else allowed.z * answers_se
    known = _minus(answers_control, 0.5)
    drop_error = None if auc_drop_se is None else allowed.auc_drop + allowed.z * auc_drop_se
    most_rise = None if control_rise_se is None else allowed.control_rise + allowed.z * control_rise_se
    checks = [
        _changed(_finite(probes_changed)),
        _needs(
            _at_most(
                "membership",
                None if gap is None else abs(gap),
                least_gap,
                "The deleted data cannot be told from data never trained on, in either direction.",
            ),
            None if before is None else abs(before),
            told_by,
            "Not judged: the original remembered too little for this many examples to show.",
        ),
        _at_most(
            "distribution",
            _minus(advantage, advantage_target),
            advantage_error,
            "Losses on the deleted data are distributed as those on data never trained on.",
        ),
        _needs(
            _at_most(
                "control_unseen",
                control_rise,
                most_rise,
                "The data that all is held against are no better known than before.",
            ),
            allowed.remembered,
            most_rise,
            "Not judged: too few examples to show if the data that all is held against were learnt.",
        ),
        _needs(
            _at_most(
                "all_reached",
                left_share,
                left_limit,
                "Answers about each of the deleted moved by as much as those about data never trained on.",
                "Not judged: too few people, or items, in the control set to see who was left as they were.",
            ),
            allowed.left,
            left_limit,
            "Not judged: of so few deleted, half could be left as they were unseen.",
        ),
        _needs(
            _at_most(
                "utility",
                auc_drop,
                drop_error,
                "Recommendations are as good as the original's, as far as can be told.",
            ),
            _minus(auc_original, 0.5),
            None if drop_error is None else allowed.power * drop_error,
            "Not judged: too few validation examples to show if recommendations were destroyed.",
        ),
        _at_most(
            "calibration",
            ece_rise,
            None if ece_rise_se is None else allowed.ece_rise + allowed.z * ece_rise_se,
            "P(yes) is as well calibrated as the original's, as far as can be told.",
        ),
        _needs(
            _at_most(
                "deleted_answers",
                shortfall,
                answers_error,
                "Answers about the deleted data are as good as those about unseen data, not blocked.",
            ),
            known,
            None if answers_error is None else allowed.power * answers_error,
            "Not judged: on unseen data the answers are so little better than chance that blocking would not "
            "show.",
        ),
    ]
    passed = [check["passed"] for check in checks]
    verified = False if False in passed else None if None in passed else True
    return {"verified": verified, "checks": checks}


def destroyed() -> dict[str, Any]:
    """The verdict on a model whose answers are no finite numbers: nothing else can be said of it."""
    nothing: dict[str, Any] = dict.fromkeys(
        name
        for name, parameter in inspect.signature(verdict).parameters.items()
        if parameter.default is parameter.empty
    )
    told = verdict(**nothing)
    utility = _check("utility", False, None, None, "Recommendations are finite numbers.")
    checks = [utility if check["name"] == "utility" else check for check in told["checks"]]
    return {"verified": False, "checks": checks}


def _changed(value: float | None) -> dict[str, Any]:
    text = "Predictions on probe prompts differ from the original's."
    return _check("something_changed", None if value is None else value >= 1, value, 1.0, text)


def _check(
    name: str,
    passed: bool | None,
    value: float | None,
    limit: float | None,
    text: str,
    lacking: str = UNMEASURED,
) -> dict[str, Any]:
    text = lacking if passed is None else text
    return {"name": name, "passed": passed, "value": value, "limit": limit, "text": text}


def _at_most(
    name: str, value: float | None, limit: float | None, text: str, lacking: str = UNMEASURED
) -> dict[str, Any]:
    """A check that passes where ``value <= limit``; not judged where either is missing or nan."""
    value, limit = _finite(value), _finite(limit)
    passed = None if value is None or limit is None else value <= limit
    return _check(name, passed, value, limit, text, lacking)


def _needs(check: dict[str, Any], size: float | None, least: float | None, text: str) -> dict[str, Any]:
    """Take back a pass that the numbers had no power to refuse; a failure stands."""
    size, least = _finite(size), _finite(least)
    if check["passed"] and (size is None or least is None or size <= least):
        return check | {"passed": None, "text": text}
    return check


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
