"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MAX_SEED = 2**53 - 1  # as curerec.config has it, which takes its time to import
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Public data set (ml-100k, ml-1m, goodbooks-10k), a path, or what `curerec pack` wrote. "
        "Default: the recipe's.",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Recipe that ships (demo, quick, lora, e2urec) or a YAML file. Default: by --model.",
    ),
]
Settings = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Recipe that ships (quick, ...) or a YAML file, whose settings of methods are taken. "
        "Default: those stored with the recommender.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="Base: nano, smollm2-135m, a folder, or owner/name on the hub. Default: the recipe's."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything random. Default: the recipe's."),
]
MethodSeed = Annotated[
    int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of everything random in the method.")
]
RequestFile = Annotated[
    Path,
    typer.Option("--request", help="csv with the header user, item or user,item; or JSON with kind and ids."),
]
Folder = Annotated[Path, typer.Option("--recommender", help="Folder that `curerec train` wrote.")]
BaseFolder = Annotated[
    Path | None,
    typer.Option("--base", help="Folder of the base model, where its name alone does not find it."),
]
StoreFolder = Annotated[Path, typer.Option("--store", help="Folder that `curerec request init` made.")]
