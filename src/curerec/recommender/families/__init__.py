"""Where the parts of a model family are: one small file a family, checked against the model at load."""

from __future__ import annotations

from typing import Any

from curerec.errors import ModelError
from curerec.recommender.families.base import Family
from curerec.recommender.families.gemma import GEMMA2, GEMMA3
from curerec.recommender.families.gpt2 import GPT2
from curerec.recommender.families.llama import LLAMA
from curerec.recommender.families.phi import PHI
from curerec.recommender.families.phi3 import PHI3

FAMILIES: tuple[Family, ...] = (LLAMA, GPT2, GEMMA2, GEMMA3, PHI, PHI3)


def family_of(model: Any) -> Family:
    """The family of a model.

    Raises:
        ModelError: no family knows its ``model_type``; the message names it.
    """
    return family_named(model.config.model_type)


def family_named(model_type: str) -> Family:
    """The family that covers a ``model_type``.

    Raises:
        ModelError: none does; the message names it.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise ModelError(
        f"model type {model_type!r} is not supported",
        where="base model",
        mend=f"Use one of: {known_types()}; or add a file under recommender/families",
    )


def known_types() -> str:
    """All model types that are supported, for a message."""
    return ", ".join(t for f in FAMILIES for t in f.model_types)


__all__ = ["FAMILIES", "Family", "family_named", "family_of", "known_types"]
