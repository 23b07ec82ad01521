"""A saved recommender with its data, split and base at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curerec.errors import ModelError, RequestError
from curerec.interactions import Interactions
from curerec.models import check_asked, device, fresh_model, spreads
from curerec.recipe import Recipe, recipe_of_card
from curerec.recommender import bases, storage, stored_answers, waypoints
from curerec.recommender.copies import base_of
from curerec.recommender.spread import spread_base
from curerec.records import Examples, ForgetSplit, Recommender, Split
from curerec.splitting import split_of


@dataclass(frozen=True)
class Opened:
    """A saved recommender with its data, split and base at hand."""

    recommender: Recommender
    recipe: Recipe
    data: Interactions
    split: Split
    base: Path
    note: str | None = None  # what a user should know of how it was opened
    answered: stored_answers.StoredAnswers | None = (
        None  # what it and its base answered in training, where that is stored
    )
    as_trained: stored_answers.StoredAnswers | None = (
        None  # of an unlearned one: what the recommender as trained answered those that are left
    )
    waypoints: waypoints.StoredWaypoints | None = None  # of its training, where they were kept


def open_recommender(
    folder: Path,
    data: Interactions,
    *,
    base: Path | None = None,
    cache: Path | None = None,
    cut: bool = False,
) -> Opened:
    """Load a recommender and rebuild the split that it was trained on.

    Titles that are not those of its training are no obstacle, but are noted; those that make prompts longer
    than the model's positions are one.

    Args:
        folder: of the recommender.
        data: the ratings that it was trained on.
        base: folder of its base model; None: by the name in its card.
        cache: of base models.
        cut: each of the processes that were started together keeps a part of the frozen base
            (:mod:`curerec.recommender.spread`); all must come here.

    Raises:
        ConfigError: the base cannot be cut: no adapter is on it, or it is in few bits.
        ModelError: the data are not those that it was trained on, its files are not what its card says, or
            its prompts do not fit the model.
    """
    card = storage.read_card(folder)
    if card["data"]["fingerprint"] != data.fingerprint:
        raise ModelError(
            "was trained on other ratings than these (the fingerprints differ)",
            where=f"recommender {Path(folder).name}",
            mend="Give --data the ratings that `curerec train` read",
        )
    where = f"recommender {Path(folder).name}, recipe in {storage.CARD}"
    recipe, of_settings = recipe_of_card(card, where=where)
    of_titles = titles_note(card, data)
    note = "; ".join(filter(None, (of_settings, of_titles))) or None
    base = base or bases.resolve(card["base"]["name"], cache=cache)
    if cut:  # whole in main memory only
        spreads(recipe.model)  # refuses few bits before anything is loaded
        recommender = storage.load(
            folder, base, dtype=storage.type_named(recipe.model.dtype) or storage.type_on(device())
        )
        spread_base(recommender.model, device())
    else:
        recommender = storage.load(folder, base, device=device())
    split = split_of(data, recipe.split)
    if of_titles:  # longer ones may be more than it has positions for
        check_asked(recommender, data, (split.train, split.control, split.valid, split.test))
    own = stored_answers.read(recommender, data, stored_answers.asked_in_training(split))
    return Opened(recommender, recipe, data, split, base, note, own, waypoints=waypoints.stored(recommender))


def check_as_trained(opened: Opened) -> None:
    """Refuse a recommender that people were deleted from before, where its data still have them.

    Its split would count them as staying: an update would hold the model to what it answered about them, and
    a retrain would train on them again. A version that a store committed is of data without them.

    Args:
        opened: the recommender.

    Raises:
        RequestError: something was deleted from it, or it was trained without something.
    """
    card = opened.recommender.card
    if (card.get("unlearned") or card.get("without")) and not card.get("committed"):
        name = opened.recommender.path.name if opened.recommender.path else ""
        raise RequestError(
            "something was deleted from it before, and its data still have that: it would count as staying",
            where=f"recommender {name}".strip(),
            mend="Carry out requests one after another in a store (curerec request) that begins with the "
            "recommender as it was trained, or name all that is to be deleted in one request",
        )


def titles_note(card: Mapping[str, Any], data: Interactions) -> str | None:
    """What is to be said where prompts have other titles than those of a recommender's training.

    Args:
        card: of the recommender; one of before, which does not name its titles, says nothing.
        data: the titles at hand.
    """
    if card["data"].get("titles") in (None, data.titles_digest):
        return None
    return "the titles are not those that it was trained with, so prompts may differ from those it knows"


def base_model(opened: Opened, *, seed: int) -> Any:
    """The model before fine-tuning, to be asked: under an adapter its own base, else loaded anew.

    Args:
        opened: the recommender; left as it is.
        seed: of what a base lacks when it is loaded.
    """
    return base_of(opened.recommender.model, lambda: fresh_model(opened.base, opened.recipe.model, seed=seed))


def answers_at_hand(opened: Opened) -> stored_answers.StoredAnswers | None:
    """What training kept, as far as it is of the model and the ratings that are at hand."""
    answered, model = opened.answered, opened.recommender.model
    if answered is None or answered.data is not opened.data:
        return None  # other ratings were put in their place
    return answered if answered.model is model else answered.of_base(model)


def check_lengthened(opened: Opened, split: ForgetSplit) -> None:
    """Refuse a request that makes a prompt longer than the model's positions, before any work is done.

    Where a deleted interaction stood in a history an older one moves up, whose title may be longer. Prompts
    that the request leaves as they are were looked at in training.

    Args:
        opened: the recommender.
        split: the request applied.

    Raises:
        RequestError: naming both lengths.
    """
    roles = (("retain", "train"), ("control", "control"), ("valid", "valid"), ("test", "test"))
    changed = [_changed(getattr(split, now), getattr(opened.split, was)) for now, was in roles]
    changed = [part for part in changed if len(part)]
    try:
        if changed:
            check_asked(opened.recommender, opened.data, changed)
    except ModelError as error:
        raise RequestError(
            f"older titles move up into the places of what it deletes, and the base model {error.what}",
            where="request",
            mend="Use a recommender with a shorter split.history, shorter titles or a base of more positions",
        ) from None


def _changed(now: Examples, was: Examples) -> Examples:
    """The examples whose prompts are not as they were."""
    if len(was) == 0:
        return now
    order = np.argsort(was.target)
    at = order[np.searchsorted(was.target, now.target, sorter=order).clip(max=len(order) - 1)]
    same = (was.target[at] == now.target) & (was.history[at] == now.history).all(1)
    return now.take(~same)
