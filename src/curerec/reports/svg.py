"""Small pieces of SVG: elements, measured text, scales. Pictures are text; nothing here draws."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from html import escape
from itertools import accumulate

# XML 1.0 has no form for these; bidirectional controls could reorder the text around them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

TEXT_PX = 13.0
SMALL_PX = 12.0


def clean(text: str) -> str:
    """Text without control characters and without the scheme of an address.

    A report holds no external address, so that anybody can see at a glance that it loads nothing.

    Example:
        >>> clean("from https://example.org/\\x07")
        'from example.org/'
    """
    return re.sub(r"(?i)\bhttps?://", "", _UNSAFE.sub("", text))


def el(tag: str, *children: str, **attributes: str | float | None) -> str:
    """One element; a trailing underscore is dropped from a name (`class_`), inner ones become hyphens.

    Args:
        tag: element name.
        children: SVG text that is already safe (other elements, or :func:`words`).
        attributes: numbers are written with two decimals at most; None is left out.

    Raises:
        ValueError: a number is not finite; a picture must leave such a value out.

    Example:
        >>> el("rect", x=1.0, stroke_width=2.345, class_="a")
        '<rect x="1" stroke-width="2.35" class="a"/>'
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is None:
            continue
        shown = escape(clean(value)) if isinstance(value, str) else _number(value)
        parts.append(f'{name.rstrip("_").replace("_", "-")}="{shown}"')
    head = " ".join(parts)
    return f"<{head}>{''.join(children)}</{tag}>" if children else f"<{head}/>"


def words(text: str) -> str:
    """Any string as safe element content."""
    return escape(clean(text))


def label(
    x: float, y: float, text: str, *, anchor: str = "start", size: float = TEXT_PX, class_: str | None = None
) -> str:
    """A line of text; the font size is an attribute so that what was measured is what is drawn."""
    return el("text", words(text), x=x, y=y, font_size=size, text_anchor=anchor, class_=class_)


def picture(
    width: float,
    height: float,
    name: str,
    about: str,
    *children: str,
    class_: str = "chart",
    role: str = "img",
) -> str:
    """The outer element: a name and a description for who cannot see it, no fixed size.

    Args:
        width, height: of the drawing, px.
        name, about: read aloud by a screen reader.
        children: what is drawn.
        class_: for the style sheet.
        role: ``group`` of a picture with parts that can be chosen; an ``img`` has no parts to ARIA.
    """
    return el(
        "svg",
        el("title", words(name)),
        el("desc", words(about)),
        *children,
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        width=width,
        height=height,
        role=role,
        class_=class_,
    )


def text_width(text: str, size: float = TEXT_PX) -> float:
    """Upper estimate of the drawn width in px of a sans-serif line.

    Example:
        >>> text_width("MMM") > text_width("iii")
        True
    """
    return size * sum(_em(character) for character in text)


def shorten(text: str, width: float, size: float = TEXT_PX) -> str:
    """Text cut with an ellipsis so that it fits into ``width`` px.

    Example:
        >>> shorten("a very long name of a method", 60)
        'a very…'
    """
    text = clean(text)
    if text_width(text, size) <= width:
        return text
    ends = [*accumulate(map(_em, text), initial=_em("…"))]  # width of a cut after so many characters
    return text[: max(bisect_right(ends, width / size) - 1, 0)].rstrip() + "…"


@dataclass(frozen=True)
class Scale:
    """A straight line from a domain to pixels.

    Example:
        >>> Scale(0, 1, 100, 200)(0.5)
        150.0
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of a value; a value outside the domain lands on its edge."""
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About ``count`` round values within the domain.

        Example:
            >>> Scale(0.48, 0.61, 0, 1).ticks()
            [0.48, 0.5, 0.52, 0.54, 0.56, 0.58, 0.6]
        """
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        rough = span / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def finite(*values: float | None) -> list[float]:
    """The values that can be drawn.

    Example:
        >>> finite(1.0, None, float("nan"))
        [1.0]
    """
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def padded(values: list[float], *, least: float, pad: float = 0.08) -> tuple[float, float]:
    """A domain around values: at least ``least`` wide, so that noise does not look like a difference."""
    low, high = min(values), max(values)
    missing = max(0.0, least - (high - low)) / 2
    margin = pad * max(high - low, least)
    return low - missing - margin, high + missing + margin


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise ValueError("a picture cannot hold a number that is not finite")
    shown = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if shown == "-0" else shown


def _em(character: str) -> float:
    if character in "iljtfrI.,:;'|!()[] \u00a0\u202f":
        return 0.36
    if character in "mwMW@%…—":
        return 0.95
    if ord(character) > 0x2E7F:
        return 1.05
    return 0.7 if character.isupper() else 0.58
