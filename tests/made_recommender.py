"""A tiny recommender on disk, trained by the pipeline itself."""

from __future__ import annotations

from curerec import pipeline
from curerec.config import parse
from curerec.opened import open_recommender
from curerec.recipe import Recipe
from curerec.recommender.nano import nano_tokenizer
from curerec.recommender.storage import write_model
from curerec.records import ForgetRequest
from made_catalogue import made_catalogue
from made_families import made_family_model

DATA = made_catalogue(24)
# Plain descent: Adam makes a step of the rate's size of a gradient that is nothing but rounding.
LOOK = {"max_steps": 4, "check_every": 2, "check_size": 30, "batch_size": 16, "max_auc_drop": 1}
# Labels of D_r: without them the first retain gradient is rounding, too, and its direction is projected on.
LOOK |= {"optimizer": "sgd", "lr": 0.03, "retain_labels": 0.1}
CURE = {"pairs": 8, "pair_pool": 16, "forget_size": 20, "control_size": 20, "draws": 8, "path_steps": 1}
USERS = ForgetRequest("users", tuple(DATA.users[:3]))


def trained(folder, kind="full", seed=0, without=None, **made):
    base = folder / "base"
    if not base.exists():
        tokenizer = nano_tokenizer(DATA.titles["title"].to_pylist())
        write_model(made_family_model("mistral", len(tokenizer), scale=0.1), tokenizer, base)
    model = {"base": str(base), "kind": kind, "tuning": {"epochs": 1, "batch_size": 32, "lr": 3e-3}} | made
    recipe = {
        "split": {"train": 150, "other": 60},
        "model": model | ({"lora": {"r": 3, "alpha": 6}} if kind == "lora" else {}),
        "cure": {**CURE, "granularity": "row" if kind == "full" else "head_mlp", "update": LOOK},
        "seed": seed,
    }
    out = folder / f"{kind}-{seed}-{without is not None}"
    pipeline.train(DATA, parse(Recipe, recipe, where="test"), out, base=base, without=without)
    return out


def opened(folder):
    return open_recommender(folder, DATA, base=folder.parent / "base")
