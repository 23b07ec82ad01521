"""Methods of other packages, which name them by an entry point of the group ``curerec.methods``."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import entry_points
from typing import Any

from curerec.config import Strict
from curerec.errors import ConfigError
from curerec.source import METHODS_GROUP as GROUP


def installed(known: Collection[str]) -> dict[str, tuple[Any, type[Strict] | None]]:
    """Methods that installed packages offer: name -> (function, its configuration class or None).

    An entry point ``name = "package.module:METHOD"`` leads to such a pair. Installing a package is what
    trusts it: no recipe and no option can name code.

    Args:
        known: names that are taken.

    Raises:
        ConfigError: a package cannot be imported, what it offers is no method, or its name is taken. A method
            that a recipe names is not to be left out without a word.
    """
    found: dict[str, tuple[Any, type[Strict] | None]] = {}
    for point in entry_points(group=GROUP):
        where = f"method {point.name} of package {point.dist.name if point.dist else '(unknown)'}"
        if point.name in known or point.name in found:
            raise ConfigError("there is a method of this name already", where=where, mend="Rename it")
        try:
            offered = point.load()
        except Exception as error:  # whatever its modules do while they are imported
            mend = "Mend or uninstall the package"
            raise ConfigError(
                f"cannot be imported ({type(error).__name__})", where=where, mend=mend
            ) from None
        if not _is_method(offered):
            mend = f"Offer (function, subclass of {Strict.__module__}.Strict or None) in the group {GROUP}"
            raise ConfigError("is not a function and its configuration", where=where, mend=mend)
        found[point.name] = offered
    return found


def _is_method(offered: Any) -> bool:
    if not isinstance(offered, tuple) or len(offered) != 2 or not callable(offered[0]):
        return False
    config = offered[1]
    return config is None or (isinstance(config, type) and issubclass(config, Strict))
