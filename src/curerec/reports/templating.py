"""The one way in which a page is made from its template."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from curerec.reports.svg import clean


@cache
def template(name: str) -> Any:
    """A template of ``reports/templates``; every value that it prints is cleaned, then escaped.

    Text of ours that is markup already (pictures, scripts) passes as it is.

    Args:
        name: of its file.
    """
    environment = Environment(
        loader=PackageLoader("curerec.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    return environment.get_template(name)
