"""What options name, opened: ratings, recommender, request, recipe. Heavy imports are inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def quiet() -> None:
    """Keep the libraries' own bars and notices off the terminal."""
    import warnings

    from transformers.utils import logging

    # Of transformers to peft: nothing that a user of this command could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def ratings(name: str | None, recipe: Any) -> tuple[Any, Any]:
    """Interactions by name or path, else the recipe's; and the recipe with their name in it."""
    from curerec.data.fetch import DATASETS, load

    def tell(text: str, done: int, total: int | None) -> None:
        if done == 0:
            typer.echo(text, err=True)

    name = name or recipe.data
    form = None if name in DATASETS else recipe.format
    table = load(name, progress=tell, format=form)
    return table, recipe.model_copy(update={"data": table.name})


def opened_with(
    recommender: Path, data: str | None, base: Path | None, *, settings: str | None = None, cut: bool = False
) -> Any:
    """A recommender opened with its ratings: the card says how it was trained, ``--data`` where they are.

    Args:
        recommender, data, base: as the options of these names.
        settings: name or file of the recipe that settings of methods are taken from; None: those stored.
        cut: the processes that were started together each keep a part of its base.
    """
    from dataclasses import replace

    from curerec.opened import open_recommender, titles_note
    from curerec.recipe import recipe_of_card
    from curerec.recipes import load_recipe
    from curerec.recommender.storage import read_card

    recipe, _ = recipe_of_card(read_card(recommender), where=f"recommender {recommender.name}, its recipe")
    others = None if settings is None else recipe.with_settings_of(load_recipe(settings))
    opened = open_recommender(recommender, ratings(data, recipe)[0], base=base, cut=cut)
    if others is not None:
        opened = replace(opened, recipe=others, note=titles_note(opened.recommender.card, opened.data))
    if opened.note:
        typer.echo(f"note: {opened.note}")
    return opened


def request_of(path: Path) -> Any:
    """A request from its file."""
    from curerec.data.request_file import read_request

    return read_request(path)


def recipe_for(name: str | None, model: str | None, seed: int | None) -> Any:
    """The recipe in force: a named one or the model's default, with the options put in.

    `demo` keeps users for the pre-training of nano. With another base these would be left out for nothing, so
    none are, with a word on it, unless a recipe of the user's own says how many.
    """
    from curerec.recipes import load_recipe, own_settings
    from curerec.recommender.bases import NANO

    name = name or ("demo" if model in (None, "nano") else "lora")
    found = load_recipe(name)
    update: dict[str, Any] = {}
    if model is not None:
        size = found.model.nano if model == "nano" else None  # another base has a size of its own
        update["model"] = found.model.model_copy(update={"base": model, "nano": size})
    if seed is not None:
        update["seed"] = seed
    found = found.model_copy(update=update)
    base = Path(found.model.base).name
    made_here = base == NANO or base.startswith(f"{NANO}-")  # pre-trained on the users that are kept for it
    if found.split.public_share and not made_here:
        split = own_settings(name).get("split")
        if not isinstance(split, dict) or "public_share" not in split:
            typer.echo(f"note: no users are kept for the base {base}, which is not pre-trained on them here")
            found = found.model_copy(update={"split": found.split.model_copy(update={"public_share": 0.0})})
    return found
