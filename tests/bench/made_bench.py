"""A tiny benchmark: the made-up catalogue, a nano model, and methods that take a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curerec.bench.recipe import BenchRecipe
from curerec.config import parse
from made_commands import write_data

SHORT = {"max_steps": 4, "check_every": 2, "check_size": 60, "batch_size": 32, "max_auc_drop": 1}
CHANGE: dict[str, Any] = {
    "split": {"public_share": 0.4, "train": 240, "other": 90},
    "model": {
        "pretrain": {"epochs": 1, "batch_size": 64, "lr": 2.0e-3},
        "tuning": {"epochs": 1, "batch_size": 32, "lr": 1.0e-3, "ema": 0.0},
    },
    "cure": {
        "pairs": 16,
        "pair_pool": 32,
        "forget_size": 40,
        "control_size": 40,
        "draws": 10,
        "update": {k: v for k, v in SHORT.items()},
    },
    "npo": SHORT,
}


def made_recipe(**change: Any) -> BenchRecipe:
    """The recipe, with some keys replaced."""
    values: dict[str, Any] = {
        "name": "made",
        "datasets": {"made": {}},
        "models": {"nano": {"recipe": "demo", "change": CHANGE, "every_method": SHORT}},
        "requests": [{"share": 0.2, "methods": ["npo", "grad_diff"]}],
        "seeds": [20],
        "retrains": 2,
        "draws": 50,
    }
    return parse(BenchRecipe, {**values, **change}, where="test")


def made_place(folder: Path) -> dict[str, str]:
    """Where the catalogue is."""
    return {"made": str(write_data(folder / "data"))}
