"""What a batch works on: the version in force with the stored table, and the recipe of its settings."""

from __future__ import annotations

from pathlib import Path

from curerec import recipes
from curerec.errors import ConfigError
from curerec.models import device
from curerec.opened import Opened
from curerec.recipe import Recipe, recipe_of_card
from curerec.recommender import bases, storage, stored_answers, waypoints
from curerec.requests.stages import Job


def opened_version(job: Job) -> Opened:
    """The version in force, with the stored table and its stored split.

    Raises:
        CurerecError: its files, its base or the policy's recipe cannot be used.
    """
    card = storage.read_card(job.folder)
    recipe = settings_of(recipe_of_card(card, where="recommender, its recipe")[0], job.recipe)
    base = Path(job.base) if job.base else bases.resolve(card["base"]["name"])
    recommender = storage.load(job.folder, base, device=device())
    data, split = job.table.data, job.table.split
    answered = stored_answers.read(recommender, data, stored_answers.asked_in_training(split))
    as_trained = None
    if job.keep_answers:
        as_trained = stored_answers.read(recommender, data, split.train, stored_answers.AS_TRAINED)
    passed = waypoints.stored(recommender)
    return Opened(
        recommender, recipe, data, split, base, answered=answered, as_trained=as_trained, waypoints=passed
    )


def settings_of(recipe: Recipe, named: str | None) -> Recipe:
    """The recipe that requests are carried out by: what was trained, with the policy's settings of methods.

    Args:
        recipe: stored with the recommender.
        named: the recipe that the policy names, or None.

    Raises:
        ConfigError: no recipe of that name ships, or its settings are of another kind of model.
    """
    if named is None:
        return recipe
    if named not in recipes.names():  # a file could be another one, or gone, when a request is due
        raise ConfigError(
            f"no recipe {named} ships with curerec",
            where="policy, recipe",
            mend=f"Choose from {', '.join(recipes.names())}; a recipe of your own goes to `curerec train`",
        )
    return recipe.with_settings_of(recipes.load_recipe(named))


def base_of(opened: Opened) -> dict[str, str]:
    """Name and content hash of the base model, without the folder that it lies in."""
    base = opened.recommender.base
    return {"name": Path(base["name"]).name, "sha256": base["sha256"]}
