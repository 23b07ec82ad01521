"""Models beside the one that is judged: retrains and other runs, refused where they are of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curerec.errors import ModelError
from curerec.recipe import recipe_of_card
from curerec.recommender import storage
from curerec.records import ForgetRequest

#: Of a model's recipe: its base, which is told by its weights, and what is only kept beside a training.
NOT_OF_TRAINING = {"base", "nano", "pretrain", "waypoints"}


def check_references(folders: list[Path], original: Path, request: ForgetRequest) -> None:
    """Refuse reference models that would measure something else.

    Args:
        folders: of ``curerec train --without``.
        original: folder of the recommender before the request, whose training they must repeat.
        request: what they must have been trained without.

    Raises:
        ModelError: one saw what is to be deleted, or is of another split, base or training than the original
            (its seed apart), or two are the same model: no noise floor.
    """
    seen: set[str] = set()
    trained = _training(original) if folders else {}
    for folder in folders:
        card = storage.read_card(folder)
        where = f"--retrain {folder.name}"
        if card.get("without") != request.digest:
            mend = "Give a folder of `curerec train --without` with the same request"
            raise ModelError("was not trained without this request", where=where, mend=mend)
        if others := sorted(_differing(trained, _training(folder))):
            raise ModelError(
                f"was trained otherwise than the recommender ({', '.join(others)})",
                where=where,
                mend="Train it by the same recipe and base, with another --seed alone",
            )
        _add_other(seen, card, where, "Train it with another --seed")


def check_repeats(folders: list[Path], judged: Path, request: ForgetRequest) -> None:
    """Refuse models that are not other runs of the method that made a model, on the same request.

    Args:
        folders: that ``curerec unlearn`` wrote.
        judged: of the model.
        request: that all of them must have forgotten.

    Raises:
        ModelError: one is of another method, request or settings, or two are the same model: averages over
            seeds would be of something else.
    """
    if not folders:
        return
    own = storage.read_card(judged)
    seen = {own["weights_sha256"]}
    for folder in folders:
        card = storage.read_card(folder)
        where = f"--also {folder.name}"
        done = card.get("unlearned") or [{}]
        if not _same_steps(done, own.get("unlearned") or []) or done[-1].get("request") != request.digest:
            mend = "Give a folder of `curerec unlearn` with the same request, method and --recipe"
            raise ModelError("is of another request or method, or of other settings", where=where, mend=mend)
        _add_other(seen, card, where, "Unlearn it with another --seed")


def _same_steps(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether two models were unlearned alike; settings count where both cards have them."""
    return len(one) == len(other) and all(
        {**a, **b} == {**b, **a} and {*a, "config"} == {*b, "config"} for a, b in zip(one, other, strict=True)
    )


def _add_other(seen: set[str], card: dict[str, Any], where: str, mend: str) -> None:
    """Note a model's weights; refuse those of a model that was there before."""
    if card["weights_sha256"] in seen:
        raise ModelError("holds the same weights as another one", where=where, mend=mend)
    seen.add(card["weights_sha256"])


def _training(folder: Path) -> dict[str, Any]:
    """What a training depends on, its seed and what it left out apart: plain values."""
    card = storage.read_card(folder)
    recipe, _ = recipe_of_card(card, where=f"recommender {folder.name}, recipe in {storage.CARD}")
    return {
        "split": recipe.split.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json", exclude=NOT_OF_TRAINING),
        "base": card.get("base", {}).get("sha256"),
    }


def _differing(one: Any, other: Any, name: str = "") -> list[str]:
    """Dotted names of what two nested mappings have otherwise.

    >>> _differing({"split": {"seed": 0}, "base": "a"}, {"split": {"seed": 1}, "base": "a"})
    ['split.seed']
    """
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [name]
    keys = one.keys() | other.keys()
    return [found for k in keys for found in _differing(one.get(k), other.get(k), f"{name}.{k}".strip("."))]


__all__ = ["check_references", "check_repeats"]
