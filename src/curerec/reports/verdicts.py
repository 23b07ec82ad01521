"""The verdict in one sentence, the headline figures, and what is not claimed."""

from __future__ import annotations

from dataclasses import dataclass

from curerec.reports import figures as f
from curerec.reports.schema import Record, is_retrain
from curerec.reports.svg import finite

RANKABLE = 2  # as curerec.evaluation.residual has it, which needs more than reports may import
NO_ROOM = "two retrainings differ by more than half of what was to be forgotten"
NOT_RECORDED = "not recorded"
NO_RETRAIN = "needs a model retrained without the data, and this run made none"

# Figures that compare with a retrained model and cannot be had without one.
_AGAINST_RETRAIN = {
    "residual",
    "jsd",
    "jsd_test",
    "excess_jsd",
    "excess_residual",
    "jeffreys_half",
    "l2",
    "floor_jsd",
    "ceiling_jsd",
    "membership_gap",
    "retrain_ratio",
}

CHOICES = {
    "random": "picked at random",
    "core": "the most active ones",
    "edge": "the least active ones",
    "e2urec": "those that the experiments of E2URec forget",
}


def why(record: Record, path: str) -> str:
    """The stored reason for a missing value, of the value itself or of the part it belongs to.

    Args:
        record: the record.
        path: dotted, e.g. ``metrics.npo.residual``.

    Returns:
        The reason; a general one where none is stored.
    """
    steps = path.split(".")
    for end in range(len(steps), 0, -1):
        reason = record.missing.get(".".join(steps[:end]))
        if reason:
            return reason
    if steps[0] == "residual" and unrankable(record):
        return NO_ROOM
    compares = steps[-1] in _AGAINST_RETRAIN or steps[0] == "residual"
    if compares and record.retrained is None:
        given = (record.missing.get(f"metrics.{n}") for n in ("retrain", "retrain_2"))
        return next(filter(None, given), NO_RETRAIN)
    return NOT_RECORDED


def asked_for(record: Record) -> str:
    """``57 users`` and the like."""
    nouns = {"users": "user", "items": "item", "interactions": "single rating"}
    noun = nouns.get(record.request.kind or "", "entry")
    if record.request.n_ids is None:
        return {"user": "users", "item": "items", "single rating": "single ratings"}.get(noun, "data")
    return f.plural(record.request.n_ids, noun, "entries" if noun == "entry" else None)


def verdict(record: Record, residual: float | None = None) -> tuple[str, str, str]:
    """(state, word, sentence): ``yes`` / ``no`` / ``open``, e.g. ``Verified``, and what it means.

    Args:
        record: the record.
        residual: of the run reported on, where there are retrains: with 1 and more no check speaks for it.
    """
    checks = record.verdict.checks or []
    failed = [c.name for c in checks if c.passed is False]
    ours = record.ours
    took = f" in {f.seconds(ours.t_total_s)}" if ours and finite(ours.t_total_s) else ""
    done = f"the model was changed to forget {asked_for(record)}{took}"
    if record.request.other:
        named = "what other requests named, and is judged by one for"
        done = f"the model was changed to forget {named} {asked_for(record)}"
    if is_retrain(record.method):
        return _of_a_retrain(record, f"a model was trained anew without {asked_for(record)}{took}")
    if record.verdict.verified is True:
        # The checks use D_f, D_c and D_v alone, also where retrains were made for the other figures.
        against = "that need no retrained model"
        n = sum(c.passed is True for c in checks)
        which = f"all {f.plural(n, 'check')}" if n == len(checks) else f"{n} of {len(checks)} checks"
        passed = f"passed {which} {against}" if checks else "passed its checks"
        if residual is not None and residual >= 1:
            word = "Passed its checks, and no nearer to a retrain"
            but = "but it is no nearer to a retrained model than before"
            return "no", word, f"{_capital(done)}. It {passed}, {but}. Do not treat the request as fulfilled."
        return "yes", "Verified", f"{_capital(done)}, and it {passed}."
    if record.verdict.verified is False:
        names = ", ".join(name.replace("_", " ") for name in failed)
        which = (
            f"{len(failed)} of {f.plural(len(checks), 'check')} failed ({names})" if failed else "it failed"
        )
        return "no", "Not verified", f"{_capital(done)}, but {which}. Do not treat the request as fulfilled."
    reason = record.missing.get("verdict.verified") or record.missing.get("verdict")
    undecided = [c.name.replace("_", " ") for c in checks if c.passed is None]
    what = f.plural(len(undecided), "check")
    open_checks = (
        f"{what} could not be decided ({', '.join(undecided)})" if undecided else "no check was made"
    )
    because = reason or open_checks
    return "open", "Not judged", f"{_capital(done)}; how completely it forgot was not judged: {because}."


USE = ("utility", "calibration")  # the checks that a model which never saw the data must pass as well


def _of_a_retrain(record: Record, done: str) -> tuple[str, str, str]:
    """The verdict on a model that never saw what was deleted: only its use is in question.

    The other checks are made for models that did, and refuse some of these by chance.
    """
    checks = record.verdict.checks or []
    failed = [c.name.replace("_", " ") for c in checks if c.passed is False]
    undecided = [c.name.replace("_", " ") for c in checks if c.passed is None]
    worse = [name for name in failed if name in USE]
    if worse and not record.verdict.promoted:
        return "no", "Not verified", f"{_capital(done)}, but it is of less use ({', '.join(worse)})."
    others = []
    if failed:
        others.append(f"{len(failed)} failed ({', '.join(failed)})")
    if undecided:
        others.append(f"{len(undecided)} could not be decided ({', '.join(undecided)})")
    text = f"{_capital(done)}: it never saw them, so its use alone is judged."
    if others:
        of = f.plural(len(checks), "check")
        text += f" Of {of} for models that did see them, {' and '.join(others)}, which says nothing here."
    return "yes", "Trained anew", text


@dataclass(frozen=True)
class KeyFigure:
    """One of the four figures at the top: a value, what it is, and what to hold it against."""

    value: str
    name: str
    note: str


def key_figures(record: Record, residual: float | None) -> list[KeyFigure]:
    """Forgetting, membership, quality, time; a figure that cannot be computed says so.

    Args:
        record: the record.
        residual: of the run reported on.
    """
    ours, original, retrain = record.ours, record.metrics["original"], record.retrained
    mine = f"metrics.{record.method}"
    attack = ours.membership_auc if ours else None
    before = original.membership_auc if original else None
    auc = ours.test_auc if ours else None
    yardstick, name = (
        (retrain, "retrained") if retrain and finite(retrain.test_auc) else (original, "original")
    )
    reference = yardstick.test_auc if yardstick else None
    total = ours.t_total_s if ours else None
    anew = record.retrain_s
    return [
        _distance(record, residual),
        KeyFigure(
            f"{f.fixed(100 * attack, 0)} in 100" if attack is not None else "not computed",
            "An attacker’s correct guesses",
            ("50 = pure guessing" + (f", before: {f.fixed(100 * before, 0)}" if before is not None else ""))
            if attack is not None
            else why(record, f"{mine}.membership_auc"),
        ),
        KeyFigure(
            f.fixed(auc) if auc is not None else "not computed",
            "Quality of recommendations (AUC)",
            f"{name}: {f.fixed(reference)} ({f.signed(auc - reference)})"
            if auc is not None and reference is not None
            else why(record, f"{mine}.test_auc" if auc is None else f"metrics.{name}.test_auc"),
        ),
        KeyFigure(
            f.seconds(total) if total is not None else "not recorded",
            "Time for the whole request",
            f"retraining: {f.seconds(anew)}" if anew is not None else "not compared with retraining",
        ),
    ]


def unrankable(record: Record) -> bool:
    """Whether two retrains differ by more than half of what was to be forgotten: no residual counts then."""
    floor, ceiling = record.floor_jsd, record.ceiling_jsd
    return floor is not None and ceiling is not None and ceiling < RANKABLE * floor


def _distance(record: Record, residual: float | None) -> KeyFigure:
    name = "Distance left to a retrained model"
    if unrankable(record):
        return KeyFigure("not judged", name, NO_ROOM)
    if residual is None:
        itself = "it is one itself, and no second one was made"
        reason = itself if is_retrain(record.method) else why(record, f"residual.{record.method}")
        return KeyFigure("not computed", name, reason)
    note, extra = "0 = as good as retraining, 1 = nothing done", record.ours.extra if record.ours else {}
    low, high = extra.get("residual_low"), extra.get("residual_high")
    if low is not None and high is not None:
        note += f"; 95{f.NBSP}%: {f.interval(low, high, 2)}"
    return KeyFigure(f.fixed(residual, 2), name, note)


def not_claimed(record: Record) -> list[tuple[str, str]]:
    """Section 7: (what, why)."""
    note = (record.model.note or "").strip()
    n = record.split.forget or record.request.n_examples
    on = f", here on {f.plural(n, 'deleted example')}," if n else ""
    claims = [
        (
            "Not a proof of erasure",
            "The figures are measurements. None shows that no trace is left in the weights.",
        ),
        (
            "Not a statement about other data",
            "They hold for the deleted, control and test data named here, and no further.",
        ),
        (
            "Nothing about the base model's pre-training",
            f"Whatever {record.model.base or 'the base model'} learnt before it was fine-tuned is untouched.",
        ),
        (
            "Not every single person",
            _who_may_be_remembered(record),
        ),
        (
            "Not that it stays forgotten",
            "Verified does not mean as close as retraining, nor that further training cannot bring back what "
            "was forgotten."
            if not is_retrain(record.method)
            else "What is trained on later may hold the same data again.",
        ),
        (
            "Not exact",
            f"The membership test is a sample{on} with the error shown; a stronger attack may find what it "
            "does not.",
        ),
        (
            "Nothing outside of this model",
            "Copies of the ratings, logs, backups, caches and older model files remain until deleted there.",
        ),
        (
            "No legal opinion",
            "Whether this satisfies a duty to erase is for the people responsible to judge.",
        ),
    ]
    seen = record.request.n_base_interactions
    if seen:
        stay = (
            f"{f.plural(seen, 'deleted rating')} went into the making of the base model. They stay in it, "
            "and no figure here shows that: they are not among the examples that the attack tests, and every "
            "retrained model starts from the same base."
        )
        claims[2] = ("Not forgotten by the base model", stay)
    if note:
        held = f"{_capital(note).rstrip('.')}. All figures hold for the weights in that form."
        claims.insert(3, ("About these weights", held))
    if record.retrained is None:
        none = "This model is one itself; no second one" if is_retrain(record.method) else "None"
        made = f"{none} was made in this run; section 3 says which figures are missing for that."
        claims.insert(1, ("No comparison with a retrained model", made))
    return claims


def _who_may_be_remembered(record: Record) -> str:
    """How many of the deleted could be remembered without a check that fails, by those that were made."""
    checks = record.verdict.checks or []
    if any(check.name == "all_reached" and check.passed is not None for check in checks):
        return (
            "A check of each of the deleted sees whose answers did not move, where they are more than chance "
            "allows: in trials a twentieth of the people, left as they were, mostly passed. Whose answers "
            "moved may be remembered all the same: a fifth of the people, half as they were, mostly passed."
        )
    return (
        "The checks made are of all deleted data together. A share of them could be left as it was (in "
        "trials a fifth of the people) and the mean would still pass."
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
