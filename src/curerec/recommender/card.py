"""The card of a saved recommender, ``curerec.json``: what it is of, and what opening it depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from curerec.errors import ModelError
from curerec.recommender import model_card
from curerec.recommender.safety import weights_digest
from curerec.records import Recommender

CARD = "curerec.json"
FORMAT = "curerec-recommender/1"
#: Folders of recommenders in what `curerec unlearn`, `curerec demo` and `curerec request init` write.
INSIDE = ("recommender", "original", "cure", "current")


def write_card(recommender: Recommender, folder: Path) -> None:
    """``curerec.json``, and the same for readers as ``README.md``, beside weights that are there already."""
    card = {
        **recommender.card,
        "format": FORMAT,
        "template": recommender.template,
        "base": recommender.base,
    }
    card |= {"answers": list(recommender.answers), "weights_sha256": weights_digest(folder)}
    (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / model_card.FILE).write_text(model_card.model_card(card), encoding="utf-8")


class _Base(BaseModel):
    name: str
    sha256: str
    config_sha256: str | None = None  # cards of before do not name it
    revision: str | None = None  # of the hub, where it is from there


class _Data(BaseModel):
    fingerprint: str
    titles: str | None = None  # cards of before do not name them


class _Card(BaseModel):
    """What a card must hold for a recommender to be opened; it may hold more."""

    kind: Literal["full", "lora"]
    base: _Base
    data: _Data
    recipe: dict[str, Any]
    template: str
    answers: tuple[int, int]
    weights_sha256: str


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a recommender folder.

    Raises:
        ModelError: there is none, it is of another format, or something in it is missing or no longer fits.
    """
    where = f"recommender {Path(folder).name}"
    try:
        card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        inside = [name for name in INSIDE if (Path(folder) / name / CARD).is_file()]
        mend = "Give a folder that `curerec train` wrote"
        if inside:  # what a command wrote is given whole
            mend = f"Give what is in it: {', '.join(str(Path(folder) / name) for name in inside)}"
        raise ModelError(f"holds no {CARD} of format {FORMAT}", where=where, mend=mend)
    try:
        _Card.model_validate(card)
    except ValidationError as error:
        key = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise ModelError(f"{CARD} is damaged at {key}", where=where, mend="Train it anew") from None
    return card
