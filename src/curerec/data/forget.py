"""Deletion requests: drawing them for experiments, and what they do to a split."""

from __future__ import annotations

from typing import Literal

import numpy as np

from curerec.data.columns import codes_in
from curerec.data.splits import examples
from curerec.errors import RequestError
from curerec.interactions import Interactions
from curerec.records import Examples, ForgetRequest, ForgetSplit, Split

Choice = Literal["random", "core", "edge"]


def draw_request(
    data: Interactions,
    split: Split,
    *,
    kind: Literal["users", "items", "interactions"] = "users",
    share: float = 0.1,
    choice: Choice = "random",
    seed: int = 0,
) -> ForgetRequest:
    """A request for an experiment: ``share`` of the users, items or interactions of the training examples.

    Args:
        kind: what is deleted.
        share: 0 < share < 1, of the distinct users or items (or of the interactions) in ``split.train``.
        choice: ``random``; ``core``, the most active; ``edge``, the least active (users and items only).
        seed: of the random choice.

    Raises:
        RequestError: the share asks for nothing or for everything.
    """
    rows = split.train.target
    code = {"users": data.user_code, "items": data.item_code, "interactions": np.arange(len(data))}[kind]
    pool, activity = np.unique(code[rows], return_counts=True)
    n = round(share * len(pool))
    if not 0 < n < len(pool):
        raise RequestError(
            f"a share of {share:g} of {len(pool)} {kind} would be {n}",
            where="request",
            mend="Choose a share that leaves something to forget and something to keep",
        )
    rng = np.random.default_rng([seed, 5])
    shuffled = rng.permutation(len(pool))
    if choice != "random":  # ties in activity fall at random
        key = activity[shuffled] if choice == "edge" else -activity[shuffled]
        shuffled = shuffled[np.argsort(key, kind="stable")]
    chosen = np.sort(pool[shuffled[:n]])
    if kind == "interactions":
        users, items = data.users[data.user_code[chosen]], data.items[data.item_code[chosen]]
        return ForgetRequest(kind, tuple(zip(users.tolist(), items.tolist(), strict=True)))
    names = data.users if kind == "users" else data.items
    return ForgetRequest(kind, tuple(names[chosen].tolist()))


def deleted_rows(data: Interactions, request: ForgetRequest) -> np.ndarray:
    """The interactions that a request deletes, bool [n_rows].

    Raises:
        RequestError: an id is not in the data (the message gives its position in the request, never the id),
            or the request is empty.
    """
    if not request.ids:
        raise RequestError("the request names nothing", where=request.source, mend="Name at least one id")
    mask = np.zeros(len(data), bool)
    if request.kind == "interactions":
        users = codes_in(data.user_ids, [str(user) for user, _ in request.ids])
        rows = data.rows_of_pairs(users, codes_in(data.item_ids, [str(item) for _, item in request.ids]))
        _refuse_unknown(rows < 0, "interaction", request)
    else:
        of_users = request.kind == "users"
        codes = codes_in(data.user_ids if of_users else data.item_ids, [str(i) for i in request.ids])
        _refuse_unknown(codes < 0, request.kind[:-1], request)
        rows = data.rows_of_users(codes) if of_users else data.rows_of_items(codes)
    mask[rows] = True
    return mask


def _refuse_unknown(unknown: np.ndarray, noun: str, request: ForgetRequest) -> None:
    if unknown.any():
        found = np.flatnonzero(unknown).tolist()
        places = [request.places[k] if request.places else str(k + 1) for k in found[:10]]
        listed = ", ".join(places) + (", ..." if len(found) > 10 else "")
        listed = listed if request.places else f"entries {listed}"
        raise RequestError(
            f"{len(found)} {noun}(s) of the request are not in the data ({listed})",
            where=request.source,
            mend="Check the ids and that the request and the data belong together",
        )


def apply_request(data: Interactions, split: Split, request: ForgetRequest) -> ForgetSplit:
    """What to forget and what to keep once a request is granted; see :func:`without_rows`.

    Raises:
        RequestError: an id is unknown, no training example is touched, or none would be left.
    """
    return without_rows(data, split, deleted_rows(data, request), source=request.source)


def without_rows(data: Interactions, split: Split, deleted: np.ndarray, *, source: str) -> ForgetSplit:
    """What to forget and what to keep once interactions are deleted.

    D_f keeps the histories that the model was trained on; everything else is rebuilt without the deleted
    interactions, so a retrain never sees them in any prompt. Control examples of deleted targets stay (with
    their old histories): they were never trained on and measure what a model without them looks like.

    Args:
        data: the interactions, deleted ones included.
        split: roles of the examples.
        deleted: bool [n_rows].
        source: of the request, for messages.

    Raises:
        RequestError: no training example is about what is deleted (the message says if some show it), or none
            would be left.

    Source: PROTOCOL section 1.
    """
    hit = deleted[split.train.target]
    if not hit.any():
        raise _nothing_trained_on(split.train, deleted, source)
    kept, hidden = split.train.target[~hit], hidden_in_training(split, deleted)
    retain = examples(data, kept, deleted=hidden, history=split.train.places)
    if len(retain) == 0:
        raise RequestError(
            "the request deletes all training data",
            where=source,
            mend="Nothing would be left to recommend from; remove the recommender instead",
        )

    def rebuilt(part: Examples) -> Examples:
        return examples(data, part.target[~deleted[part.target]], deleted=deleted, history=part.places)

    stays = np.isin(split.train.target, retain.target)
    control = control_without(data, split.control, deleted, hidden)
    valid, test = rebuilt(split.valid), rebuilt(split.test)
    if any(len(np.unique(part.label)) < 2 for part in (valid, test)):
        raise RequestError(
            "the request leaves too little to judge the result on (both answers in validation and test)",
            where=source,
            mend="Nothing much would be left to recommend from; train a recommender anew instead",
        )
    return ForgetSplit(
        forget=split.train.take(hit),
        retain=retain,
        control=control,
        valid=valid,
        test=test,
        deleted=deleted,
        retain_before=split.train.take(stays),
        dropped=split.train.take(~hit & ~stays),
    )


def hidden_in_training(split: Split, deleted: np.ndarray) -> np.ndarray:
    """Rows that no history of a training or control example may show, bool [n_rows].

    Those that are deleted, and those that are held out. A split holds out each user's latest, which no
    training prompt shows anyway; ratings that a retrain takes up come after them (:mod:`curerec.requests`),
    and would show the model what it is judged on.

    Args:
        split: roles of the examples. What its training examples show already is not hidden.
        deleted: bool [n_rows].
    """
    hidden = np.zeros_like(deleted)
    for part in (split.valid, split.test):
        hidden[part.target] = True
    hidden[split.train.history[split.train.history >= 0]] = False
    return hidden | deleted


def control_without(
    data: Interactions, control: Examples, deleted: np.ndarray, hidden: np.ndarray
) -> Examples:
    """D_c once interactions are deleted: examples about them as they were, then the others without them.

    Args:
        data: the interactions, deleted ones included.
        control: of the split.
        deleted: bool [n_rows].
        hidden: of :func:`hidden_in_training`.
    """
    about = deleted[control.target]
    gone = control.take(about)
    kept = examples(data, control.target[~about], deleted=hidden, history=control.places)
    return Examples(
        np.r_[gone.target, kept.target], np.r_[gone.history, kept.history], np.r_[gone.label, kept.label]
    )


def _nothing_trained_on(train: Examples, deleted: np.ndarray, source: str) -> RequestError:
    """No training prompt asks about what is deleted; whether some show it decides what the weights saw."""
    shown = (deleted[train.history] & (train.history >= 0)).any()
    if shown:
        return RequestError(
            "no training prompt asks about what the request names, but histories of some show it: an update "
            "does not take that out",
            where=source,
            mend="Take the rows out of the data and train again, or `curerec request run --retrain`",
        )
    return RequestError(
        "no training prompt asks about what the request names, or shows it: the fine-tuned weights saw "
        "nothing of it",
        where=source,
        mend="Check the ids; `split.train` draws a part of the ratings, and public users are the base's",
    )
