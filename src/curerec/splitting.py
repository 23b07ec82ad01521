"""Which examples a recipe's recommender is trained and judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curerec.data.forget import apply_request, deleted_rows, draw_request
from curerec.data.split_e2urec import e2urec_request, e2urec_split
from curerec.data.splits import HISTORY, LIKED, Drawn, per_user_split, subsample
from curerec.errors import DataError, RequestError
from curerec.interactions import Interactions
from curerec.recipe import Recipe, SplitConfig
from curerec.recommender.bases import NANO
from curerec.records import ForgetRequest, ForgetSplit, Split


def users_by_part(data: Interactions, config: SplitConfig) -> tuple[np.ndarray, np.ndarray]:
    """User codes of the public part (the base's pre-training) and of the recommender's own part."""
    order = np.random.default_rng([config.seed, 91]).permutation(len(data.user_ids))
    n = round(config.public_share * len(order))
    return np.sort(order[:n]), np.sort(order[n:])


def split_of(data: Interactions, config: SplitConfig) -> Split:
    """The recommender's split, the same whenever it is asked for with the same data and configuration.

    Raises:
        DataError: histories are too short for one, or everything in a part was liked, or nothing.
    """
    _, own = users_by_part(data, config)
    history = config.history or HISTORY
    drawn = Drawn(config.train, config.other, config.seed)
    if config.kind == "e2urec":
        # E2URec has no control set: D_c comes out of its training part, which is smaller for it.
        whole = e2urec_split(
            data, control_share=config.control_share, seed=config.seed, users=own, history=history
        )
        split = subsample(whole, drawn)
    else:
        split = per_user_split(
            data,
            seed=config.seed,
            control_share=config.control_share,
            holdout_share=config.holdout_share,
            users=own,
            history=history,
            drawn=drawn,
        )
    for role in ("train", "valid", "test"):
        if len(np.unique(getattr(split, role).label)) < 2:
            raise DataError(
                f"all ratings of the {role} part are on one side of {LIKED:g}: nothing to tell apart",
                where=data.name,
                mend="Use more data, or ratings on a scale of five with liked and disliked items",
            )
    return split


def drawn_request(data: Interactions, recipe: Recipe, split: Split) -> ForgetRequest:
    """The request that a recipe draws for an experiment.

    ``e2urec`` names the users that E2URec does: of its whole training part, before the control set is drawn
    from it and before anything is subsampled.

    Raises:
        RequestError: the share asks for nothing or for everything.
        DataError: too few examples for E2URec's split.
    """
    ask = recipe.request
    if ask.choice != "e2urec":
        return draw_request(data, split, kind=ask.kind, share=ask.share, choice=ask.choice, seed=recipe.seed)
    _, own = users_by_part(data, recipe.split)
    return e2urec_request(data, e2urec_split(data, users=own), share=ask.share)


def public_split(data: Interactions, config: SplitConfig) -> Split:
    """The split of the public part of the users; its training examples are what nano is pre-trained on."""
    public, _ = users_by_part(data, config)
    return per_user_split(data, seed=config.seed, users=public, history=config.history or HISTORY)


@dataclass(frozen=True)
class BaseShare:
    """What of a request the base model was pre-trained on: unlearning does not reach it there.

    Attributes:
        n_users: users whose deleted interactions were in its prompts.
        n_interactions: of them.
    """

    n_users: int
    n_interactions: int

    def __bool__(self) -> bool:
        return self.n_interactions > 0

    @property
    def text(self) -> str:
        """What it means, for whoever asked."""
        users = f"{self.n_users} user{'s' * (self.n_users != 1)}"
        named = f"{self.n_interactions} of the ratings named, by {users},"
        return (
            f"the base model was pre-trained on {named} and they stay in it: only what fine-tuning learnt is "
            "unlearnt. Retrained models start from the same base, so no comparison with them shows this"
        )


def base_share(
    data: Interactions, recipe: Recipe, deleted: np.ndarray, seen: np.ndarray | None = None
) -> BaseShare | None:
    """How much of what is deleted the base model saw; None where its pre-training data are not known.

    Args:
        data: interactions.
        recipe: that the recommender was trained by.
        deleted: bool [n_rows], of :func:`curerec.data.forget.deleted_rows`.
        seen: bool [n_rows], rows that the base was pre-trained on, where they are stored; None: drawn from
            ``data`` as they were then, which must be all that the base's pre-training had.
    """
    if recipe.model.base != NANO:
        return None
    rows = np.flatnonzero(deleted & (base_rows(data, recipe) if seen is None else seen))
    return BaseShare(len(np.unique(data.user_code[rows])), len(rows))


def base_rows(data: Interactions, recipe: Recipe) -> np.ndarray:
    """bool [n_rows]: targets and histories of the prompts that the recipe's base was pre-trained on."""
    mask = np.zeros(len(data.user_code), bool)
    if recipe.split.public_share:
        seen = public_split(data, recipe.split).train
        mask[seen.target] = True
        mask[seen.history[seen.history >= 0]] = True
    return mask


def granted(data: Interactions, recipe: Recipe, split: Split, request: ForgetRequest) -> ForgetSplit:
    """A request applied to the recommender's split.

    Raises:
        RequestError: as :func:`curerec.data.forget.apply_request`; or the base model alone saw what is named.
    """
    deleted = deleted_rows(data, request)
    if not deleted[split.train.target].any():
        share = base_share(data, recipe, deleted)
        if share:
            raise RequestError(
                "only the base model's pre-training saw what the request names: unlearning does not reach it",
                where=request.source,
                mend="Take these ratings out of the data and train again, which makes the base anew",
            )
    return apply_request(data, split, request)
