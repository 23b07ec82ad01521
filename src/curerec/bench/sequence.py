"""A request in parts, one after the other: each starts from the model that the one before it left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from curerec.data.forget import deleted_rows, without_rows
from curerec.errors import RefusedError
from curerec.models import logits_of
from curerec.opened import Opened
from curerec.pipeline import carry_out, task_for
from curerec.progress import Clock, Reporter, Silent
from curerec.recommender.storage import NOT_STORABLE
from curerec.recommender.stored_answers import StoredAnswers
from curerec.records import ForgetRequest, ForgetSplit, Outcome, Split


def parts_of(request: ForgetRequest, parts: int, seed: int) -> list[ForgetRequest]:
    """The request dealt into parts of equal size, at random.

    Raises:
        RefusedError: it names fewer ids than parts.
    """
    order = np.random.default_rng([seed, 23]).permutation(len(request.ids))
    if len(order) < parts:
        raise RefusedError(
            f"names {len(order)} {request.kind}, too few for {parts} parts",
            where="request",
            mend="Ask for a larger share or fewer parts",
        )
    return [
        replace(request, ids=tuple(request.ids[k] for k in np.sort(mine)))
        for mine in np.array_split(order, parts)
    ]


def one_after_the_other(
    opened: Opened,
    request: ForgetRequest,
    parts: int,
    method: str,
    config: Any,
    *,
    seed: int,
    as_trained: bool = False,
    reporter: Reporter | None = None,
) -> Outcome:
    """Carry out the parts of a request; seconds add up, of the parameters the most that a part moved count.

    Each part is forgotten by the model that the part before left, on the data that part left. A part of which
    nothing was trained on has nothing to forget and is passed over. ``details["parts"]`` has what each part
    says (:func:`said`).

    Args:
        opened: the recommender as trained.
        request: to be dealt into parts.
        parts: how many.
        method, config: that carries out each.
        seed: of the deal and of every part.
        as_trained: what the recommender as trained answered its training examples is kept through the
            sequence, and the retain side of every update held to it (:meth:`Task.retain_logits`); else to
            what the part before left.
        reporter: told of progress.

    Raises:
        RefusedError: the method leaves something that it cannot start from again (several models, a router, a
            retrieval), or nothing of the request was trained on.
    """
    deleted = np.zeros(len(opened.data), bool)
    left, model = opened.split, opened.recommender.model
    kept = _answers(opened) if as_trained else None
    done: list[Outcome] = []
    for k, part in enumerate(parts_of(request, parts, seed)):
        deleted = deleted | deleted_rows(opened.data, part)
        if not deleted[left.train.target].any():
            continue
        now = without_rows(opened.data, left, deleted, source=part.source)
        at = replace(opened, recommender=replace(opened.recommender, model=model), as_trained=kept)
        task = task_for(at, now, seed=seed * 100 + k, clock=Clock(reporter or Silent()))
        done.append(carry_out(task, method, config))
        model, left = done[-1].model, _left(left, now)
        if k + 1 < parts:
            _check_goes_on(done[-1])
    if not done:
        raise RefusedError("nothing of it was trained on", where="request")
    return replace(
        done[-1],
        t_core_s=sum(one.t_core_s for one in done),
        t_total_s=sum(one.t_total_s for one in done),
        stop_reason="; ".join(dict.fromkeys(one.stop_reason for one in done)),
        n_trainable=max(one.n_trainable for one in done),
        details={**done[-1].details, "parts": [said(one) for one in done]},
    )


def said(outcome: Outcome) -> dict[str, Any]:
    """What the row of one update holds of its choice: plain numbers, by name."""
    out: dict[str, Any] = {"trainable_parameters": outcome.n_trainable}
    if outcome.circuit is not None:
        out |= {"circuit_size": len(outcome.circuit.core), "faithfulness": outcome.circuit.faithfulness}
    if outcome.groups is not None and np.isfinite(agreement := outcome.groups.agreement.mean()):
        out["group_agreement"] = float(agreement)
    return out


def explained(outcome: Outcome) -> dict[str, Any]:
    """What a row holds of how a method chose and of a making before the request; of a sequence, of all parts.

    Numbers of parameters and of modules are the largest of a part's, the others the parts' mean; ``of_parts``
    has each.
    """
    details = outcome.details
    out: dict[str, Any] = {k: details[k] for k in ("setup_s", "setup_forward_equivalents") if k in details}
    parts = details.get("parts")
    each = parts or [said(outcome)]
    for name in ("circuit_size", "faithfulness", "group_agreement"):
        if values := [part[name] for part in each if part.get(name) is not None]:
            out[name] = max(values) if name == "circuit_size" else float(np.mean(values))
    return out if parts is None else {**out, "of_parts": parts}


def _answers(opened: Opened) -> StoredAnswers:
    train = opened.split.train
    if opened.answered is not None:
        return opened.answered
    logits = logits_of(opened.recommender, opened.data, train)
    return StoredAnswers.of(opened.recommender.model, opened.data, train, logits)


def _left(before: Split, now: ForgetSplit) -> Split:
    return replace(before, train=now.retain, control=now.control, valid=now.valid, test=now.test)


def _check_goes_on(outcome: Outcome) -> None:
    stored = outcome.details.get("storable", True)
    if not stored or any(hasattr(m, NOT_STORABLE) for m in outcome.model.modules()):
        raise RefusedError(
            f"{outcome.method} leaves no single model that a second request could start from",
            where="sequence",
        )
