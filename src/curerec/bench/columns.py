"""Attacks beyond membership, by name: what a recipe's ``columns`` chooses from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from curerec.measure import Candidate
from curerec.pipeline import Opened
from curerec.records import ForgetRequest, ForgetSplit, Outcome


@dataclass(frozen=True)
class Cell:
    """What an attack may use of a cell.

    Attributes:
        opened: the original with its data.
        request, split: what was deleted.
        outcome: of the method.
        new, original: measured, with logits.
        references: retrains, measured; their models are not held.
        seed: of the cell.
    """

    opened: Opened
    request: ForgetRequest
    split: ForgetSplit
    outcome: Outcome
    new: Candidate
    original: Candidate
    references: dict[str, Candidate]
    seed: int


@dataclass(frozen=True)
class Column:
    """An attack: the columns it fills and how."""

    gives: tuple[str, ...]
    measure: Callable[[Cell], dict[str, Any]]


COLUMNS: dict[str, Column] = {}
