"""Circuit-aware unlearning for LLM-based recommenders.

The names below load on first use, so that ``import curerec`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "load": "curerec.data.fetch",
    "read_request": "curerec.data.request_file",
    "load_recipe": "curerec.recipes",
    "Recipe": "curerec.recipe",
    "ForgetRequest": "curerec.records",
    "train": "curerec.pipeline",
    "open_recommender": "curerec.opened",
    "unlearn": "curerec.pipeline",
    "save_unlearned": "curerec.pipeline",
    "run_experiment": "curerec.experiment",
    "CurerecError": "curerec.errors",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'curerec' has no attribute {name!r}")


__all__ = ["__version__", *sorted(_PLACES)]
