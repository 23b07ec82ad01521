"""What cells share and keep: trained models, measured originals and references, predictions.

Each is made once for what it depends on, whose digest names it, and is read back only if that digest and its
own contents agree; anything else in its place is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from curerec.data import durable
from curerec.errors import ModelError
from curerec.experiment import RETRAIN_SEEDS
from curerec.interactions import Interactions
from curerec.opened import Opened, open_recommender
from curerec.pipeline import train
from curerec.progress import Clock, Reporter, Silent
from curerec.recipe import SETTINGS, Recipe
from curerec.recommender import storage
from curerec.recommender.safety import metadata_of, weights_digest
from curerec.records import ForgetRequest

MODELS, YARDSTICKS, PREDICTIONS, BASES = "models", "yardsticks", "predictions", "bases"
#: All that a benchmark writes into its folder.
OBSTACLES = "obstacles.jsonl"
EXAMPLES = "examples"  # of a yardstick: how its examples are written down
TITLES = "titles"  # of a model or a yardstick: their digest; what is of before does not name it, and stands
SAME = 1e-5  # logits of one model on one example, in batches of other lengths
FILES = ("bench.json", "rows.jsonl", "trials.jsonl", OBSTACLES, "summary.json", "bench.html")
NAMES = frozenset({MODELS, YARDSTICKS, PREDICTIONS, BASES, *FILES})
Arrays = dict[str, np.ndarray]


def digest(about: Mapping[str, Any]) -> str:
    """sha256 of plain values, keys sorted."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def training_of(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that a trained model depends on: not what requests are made and carried out by."""
    return recipe.model_dump(mode="json", exclude={*SETTINGS, "request", "format"})


def of_retrain(recipe: Recipe, number: int) -> Recipe:
    """The recipe of a retrain, from that of its original and its number, from 0; each has its own seed."""
    return recipe.model_copy(update={"seed": RETRAIN_SEEDS * (number + 1) + recipe.seed})


def trained_as(
    fingerprint: str, recipe: Recipe, without: str | None, titles: str | None = None
) -> dict[str, Any]:
    """What a trained model depends on: data, split, model, seed, and what was left out.

    Args:
        fingerprint: of the ratings.
        recipe: with the seed that the model is trained with.
        without: digest of the request that a retrain leaves out; None: an original.
        titles: digest of the titles; None: not known.
    """
    about = {"data": fingerprint, "recipe": training_of(recipe), "without": without}
    return about if titles is None else {**about, TITLES: titles}


def place_of(out: Path, about: Mapping[str, Any]) -> Path:
    """The folder of a model of this description, whether it is there or not.

    Models that do not name their titles, as before these were kept, stand under a name without them.
    """
    named, before = _named(out, about), _named(out, {k: v for k, v in about.items() if k != TITLES})
    return before if not named.exists() and before.exists() and _titles_of(before) is None else named


def _named(out: Path, about: Mapping[str, Any]) -> Path:
    return out / MODELS / f"{'original' if about['without'] is None else 'retrain'}-{digest(about)[:16]}"


def trained(
    data: Interactions,
    recipe: Recipe,
    out: Path,
    *,
    without: ForgetRequest | None = None,
    number: int = 0,
    base: Path | None = None,
    cache: Path | None = None,
    reporter: Reporter | None = None,
    shared: bool | None = None,
) -> Path:
    """The folder of an original or of a retrain, trained if it is not there whole.

    Args:
        data: interactions.
        recipe: with the seed of the original.
        out: folder of the benchmark.
        without: leave out what this request deletes: a retrain.
        number: of the retrain, from 0; each has its own seed.
        base: folder of the base model, where its name does not find it.
        cache: of the user.
        reporter: told of stages.
        shared: whether others work on the same machine, which a training's seconds depend on.
    """
    if without is not None:
        recipe = of_retrain(recipe, number)
    about = trained_as(data.fingerprint, recipe, without.digest if without else None, data.titles_digest)
    folder = place_of(out, about)
    if not is_trained(folder, about):
        folder = _named(out, about)
        clock = Clock(reporter or Silent())
        train(data, recipe, folder, without=without, base=base, cache=cache, clock=clock, shared=shared)
    return folder


def is_trained(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether a folder holds a model of just this description, its weights those of its card.

    A card of before does not name its titles: they are not known, and may be these.
    """
    try:
        card = storage.read_card(folder)
        found = {
            "data": card["data"]["fingerprint"],
            "recipe": {k: v for k, v in card["recipe"].items() if k not in (*SETTINGS, "request", "format")},
            "without": card.get("without"),
        }
        if TITLES in about:
            found[TITLES] = card["data"].get("titles") or about[TITLES]
        whole = weights_digest(folder) == card["weights_sha256"]
    except (ModelError, OSError):
        return False
    return whole and digest(found) == digest(about)


def _titles_of(folder: Path) -> str | None:
    """Digest of the titles that a model was trained with; None where its card does not say."""
    try:
        found: str | None = storage.read_card(folder)["data"].get("titles")
    except ModelError:
        return None
    return found


def weights_at(out: Path, about: Mapping[str, Any]) -> str | None:
    """sha256 of the weights of a model of this description, by its card; None where it is gone."""
    try:
        found: str = storage.read_card(place_of(out, about))["weights_sha256"]
    except ModelError:
        return None
    return found


def backing(
    out: Path,
    yardstick: str,
    fingerprint: str,
    recipe: Recipe,
    retrains: Sequence[str],
    titles: str | None = None,
) -> bool | None:
    """Whether a measured yardstick is of the models that are in the folder now.

    Trained anew, on another processor or with other threads, a model has other weights, and what was measured
    beside the earlier one is not to be compared with what will be.

    Args:
        out: folder of the benchmark.
        yardstick: name of its file.
        fingerprint: of the ratings.
        recipe: with the seed of the original.
        retrains: their names, in order.
        titles: digest of the titles; None: not known.

    Returns:
        None where it cannot be told: the file or a model is gone.
    """
    about = description_of(out / YARDSTICKS / yardstick) or {}
    models = {"original": trained_as(fingerprint, recipe, None, titles)}
    for number, name in enumerate(retrains):
        of = of_retrain(recipe, number)
        models[name] = trained_as(fingerprint, of, about.get("request", ""), titles)
    known = True
    for name, trained_so in models.items():
        weights = weights_at(out, trained_so)
        if weights is None or name not in about:
            known = False
        elif weights != about[name]:
            return False
    return True if known else None


def opened_with(
    folder: Path, data: Interactions, recipe: Recipe, base: Path | None, *, cache: Path | None = None
) -> Opened:
    """A trained model with the methods' settings of this run, whatever those were when it was trained."""
    return replace(open_recommender(folder, data, base=base, cache=cache), recipe=recipe)


def write_arrays(path: Path, arrays: Arrays, about: Mapping[str, str]) -> Path:
    """Arrays and what they are of, whole or not at all."""
    with durable.storing(path.parent.name):
        path.parent.mkdir(parents=True, exist_ok=True)
    return durable.write(
        path, save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, dict(about)), mode=0o644
    )


def same_yardstick(out: Path, one: str, other: str) -> bool:
    """Whether two yardsticks hold the same answers of the same models.

    Their names also follow how examples are written down, which may differ where nothing that is measured
    does.

    Args:
        out: folder of the benchmark; of files that are not there only equal names are the same.
        one, other: names of their files.
    """
    if one == other:
        return True
    paths = [out / YARDSTICKS / name for name in (one, other)]
    beside = (EXAMPLES, TITLES)
    models = [{k: v for k, v in (description_of(p) or {}).items() if k not in beside} for p in paths]
    if not models[0] or models[0] != models[1]:
        return False
    arrays, others = (read_arrays(path) or {} for path in paths)
    return (
        bool(arrays)
        and arrays.keys() == others.keys()
        and all(
            array.shape == others[name].shape and np.allclose(array, others[name], atol=SAME)
            for name, array in arrays.items()
        )
    )


def description_of(path: Path) -> dict[str, str] | None:
    """What arrays written by :func:`write_arrays` are of; None if they are not there or not one of ours."""
    try:
        return metadata_of(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_arrays(path: Path, about: Mapping[str, str] | None = None) -> Arrays | None:
    """Arrays written by :func:`write_arrays`; None if they are not there, not whole, or of something else.

    Args:
        path: of the file.
        about: what they must be of, titles where they name them; None: whatever they are of.
    """
    try:
        content = path.read_bytes()
        if about is not None:
            said = metadata_of(content)
            if said != {k: v for k, v in about.items() if k != TITLES or k in said}:
                return None
        return load(content)
    except (OSError, ValueError, SafetensorError):  # absent, torn, or not one of ours
        return None
