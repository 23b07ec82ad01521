"""Prompt templates: fixed text around titles, never text with titles pasted in.

A template lists the pieces of a prompt. Titles enter later as token ids of their own: no title changes the
ids of the frame or the place of another title, and the package knows from which token to which each goes. A
model sees ids alone, and may take a title that spells the frame's words for frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Literal, NamedTuple

Part = Literal["liked", "disliked", "candidate"]
PARTS: tuple[Part, ...] = ("liked", "disliked", "candidate")


class Slot(NamedTuple):
    """A place for a title: the history position it comes from (-1: the candidate) and what it stands for."""

    position: int
    part: Part


Piece = str | Slot
_slot = cache(Slot)  # thousands of prompts have the same few


def likes(ratings: Sequence[float]) -> list[Piece]:
    """Liked list, disliked list, candidate, yes/no.

    Args:
        ratings: of the history, oldest first; nan marks an empty place.
    """
    liked = [_slot(k, "liked") for k, r in enumerate(ratings) if r >= 4]
    disliked = [_slot(k, "disliked") for k, r in enumerate(ratings) if r < 4]
    pieces: list[Piece] = ["The user liked:"]
    pieces += _joined(liked)
    pieces.append(".\nThe user disliked:")
    pieces += _joined(disliked)
    return [*pieces, ".\nWill the user like:", _slot(-1, "candidate"), "?\nAnswer:"]


def stars(ratings: Sequence[float]) -> list[Piece]:
    """Numbered titles with stars, candidate, yes/no.

    Args:
        ratings: of the history, oldest first; nan marks an empty place.
    """
    pieces: list[Piece] = ["Ratings of the user, oldest first:"]
    number = 0
    for k, r in enumerate(ratings):
        if r == r:  # not nan
            number += 1
            pieces += [f"\n{number}.", _slot(k, "liked" if r >= 4 else "disliked"), _stars(r)]
    return [*pieces, "\nWill the user give at least 4 stars to", _slot(-1, "candidate"), "?\nAnswer:"]


@lru_cache(256)
def _stars(rating: float) -> str:
    return f": {rating:g} stars"


def _joined(slots: list[Slot]) -> list[Piece]:
    if not slots:
        return [" nothing"]
    out: list[Piece] = []
    for k, slot in enumerate(slots):
        out += [";", slot] if k else [slot]
    return out


TEMPLATES = {"likes": likes, "stars": stars}
ANSWERS = (" No", " Yes")
