"""Runnable recipes that ship with the package; each is run by a test."""

from importlib.resources import files
from pathlib import Path

from curerec.config import read_yaml
from curerec.errors import ConfigError
from curerec.recipe import Recipe


def names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(f.name.removesuffix(".yaml") for f in files(__name__).iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe by name (``demo``, ``lora``) or from a YAML file.

    Raises:
        ConfigError: no such recipe, or a file that does not fit.
    """
    if name_or_path in names():
        return read_yaml(Recipe, str(files(__name__).joinpath(f"{name_or_path}.yaml")))
    if Path(name_or_path).exists():
        return read_yaml(Recipe, name_or_path)
    raise ConfigError(
        "is neither a file nor a recipe that ships",
        where=name_or_path,
        mend=f"Choose from {', '.join(names())}",
    )
