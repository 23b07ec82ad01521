"""What a metric is, apart from its value: the line a table prints under itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Need = Literal["labels", "original", "control", "retrain", "retrain_seeds", "negatives", "activity"]


@dataclass(frozen=True)
class Metric:
    """Description of one number.

    Attributes:
        name: key under which records hold it.
        version: raised whenever the same input may give another number.
        unit: ``nats``, ``share``, ``probability``, ``percent`` or ``1`` (a pure number).
        better: ``higher``, ``lower`` or ``target`` (nearer to :attr:`target` is better).
        needs: what it needs beyond the predictions of the model it measures.
        formula: in words short enough for a table's foot.
        source: paper, repository or this project.
        target: the value to be near to, where ``better`` is ``target``.

    Example:
        >>> Metric("loss", 1, "nats", "lower", ("labels",), "mean -log p(label)", "textbook").unit
        'nats'
    """

    name: str
    version: int
    unit: Literal["nats", "share", "probability", "percent", "1"]
    better: Literal["higher", "lower", "target"]
    needs: tuple[Need, ...]
    formula: str
    source: str
    target: float | None = None
