"""A picture as a file of its own, for a README or a paper."""

from __future__ import annotations

from curerec.reports.templating import template


def standalone(svg: str) -> str:
    """An SVG picture of a report with the style that the page would give it, light or dark.

    Args:
        svg: of one of the functions that draw.

    Returns:
        Contents of an ``.svg`` file, which loads nothing.

    Raises:
        ValueError: there is no picture, e.g. since nothing could be ranked.

    Example:
        >>> from curerec.reports.svg import picture
        >>> standalone(picture(10, 10, "a", "b")).startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
        True
    """
    if not svg.startswith("<svg "):
        raise ValueError("nothing was drawn: there is no picture to write")
    start = svg.index(">") + 1
    head = svg[:start].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{head}<style>\n{template('alone.css').render()}</style>{svg[start:]}\n"
