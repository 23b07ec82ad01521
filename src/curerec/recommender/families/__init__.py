"""Where the parts of a model family are: one small file a family, checked against the model at load."""

from __future__ import annotations

from typing import Any

from curerec.errors import ModelError
from curerec.recommender.families.base import Family
from curerec.recommender.families.llama import LLAMA

FAMILIES: tuple[Family, ...] = (LLAMA,)


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises:
        ModelError: no family knows its ``model_type``; the message names it.
    """
    model_type = model.config.model_type
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(t for f in FAMILIES for t in f.model_types)
    raise ModelError(
        f"model type {model_type!r} is not supported",
        where="base model",
        mend=f"Use one of: {known}; or add a file under recommender/families",
    )


__all__ = ["FAMILIES", "Family", "family_of"]
