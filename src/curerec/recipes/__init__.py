"""Runnable recipes that ship with the package; each is run by a test."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from curerec.config import merged, parse, values_in
from curerec.errors import ConfigError
from curerec.recipe import Recipe


def names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(f.name.removesuffix(".yaml") for f in files(__name__).iterdir() if f.name.endswith(".yaml"))


def load_recipe(name_or_path: str, *, beside: Path = Path()) -> Recipe:
    """A recipe by name (``demo``, ``lora``) or from a YAML file.

    Args:
        name_or_path: of the recipe.
        beside: folder that a path is seen from.

    A recipe may begin with ``extends: lora``, a name or a file (seen from its own place): it then has that
    recipe's settings but for those that it gives itself, key by key; ``null`` gives a default back where a
    key may be null. One that extends none has the defaults of :class:`curerec.recipe.Recipe` so.

    Raises:
        ConfigError: no such recipe, one that extends itself, or a file that does not fit.
    """
    return parse(Recipe, _resolved(name_or_path, beside, ()), where=name_or_path)


def own_settings(name_or_path: str) -> dict[str, Any]:
    """What a recipe's files say themselves: nothing of what the recipes that ship do.

    Raises:
        ConfigError: as :func:`load_recipe`.
    """
    values = _resolved(name_or_path, Path(), (), own=True)
    return values if isinstance(values, dict) else {}


def _resolved(name_or_path: str, beside: Path, extended: tuple[Path, ...], *, own: bool = False) -> Any:
    """Values of a recipe and of those that it extends.

    Args:
        name_or_path: of the recipe.
        beside: folder that a path is seen from.
        extended: the files that led here.
        own: without those of the recipes that ship.
    """
    if name_or_path in names():
        if own:
            return {}
        path = Path(str(files(__name__).joinpath(f"{name_or_path}.yaml")))
    else:
        path = beside / name_or_path
    if not path.exists():
        raise ConfigError(
            "is neither a file nor a recipe that ships",
            where=name_or_path,
            mend=f"Choose from {', '.join(names())}",
        )
    if path.resolve() in extended:
        raise ConfigError("extends itself", where=str(path), mend="Take one `extends:` of the circle out")
    values = values_in(path)
    if not isinstance(values, dict) or "extends" not in values:
        return values
    other = values.pop("extends")
    if not isinstance(other, str):
        raise ConfigError("extends is no name", where=str(path), mend="Write `extends: lora`, or a file")
    whole = _resolved(other, path.parent, (*extended, path.resolve()), own=own)
    parse(Recipe, whole, where=other)  # a fault is said of the file that it is in
    return merged(whole, values)
