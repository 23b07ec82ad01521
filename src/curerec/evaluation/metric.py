"""What a metric is: its description, and the one call that computes it or says why it cannot."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from curerec.errors import ConfigError

if TYPE_CHECKING:
    from curerec.evaluation.scene import Scene

Need = Literal["labels", "original", "control", "retrain", "retrain_seeds", "seeds", "model", "tuning"]
#: ``arrays``: from answers that were scored anyway; ``scoring``: more forward passes, seconds on a small
#: model; ``attack``: fine-tuning or patching, up to minutes; ``shadows``: many trainings, up to hours.
Cost = Literal["arrays", "scoring", "attack", "shadows"]


class CannotError(ConfigError):
    """A metric that cannot be computed from what is at hand; its text is the reason that a table shows."""


@dataclass(frozen=True)
class Value:
    """One number, or the reason why there is none.

    Attributes:
        value: the number; None where it cannot be computed.
        low, high: 95 % interval, where there is one.
        n: examples (users, for rankings) it rests on.
        missing: why ``value`` is None; "" where it is not.
        details: anything else that a reader may ask for, plain values.

    Example:
        >>> Value(0.5, n=10).missing, Value.none("no retrained model").value
        ('', None)
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    missing: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                object.__setattr__(self, name, None)
        if self.value is None and not self.missing:
            object.__setattr__(self, "missing", "the number is not finite")

    @classmethod
    def none(cls, reason: str, **details: Any) -> Value:
        """No number, for a reason."""
        return cls(None, missing=reason, details=details)


@dataclass(frozen=True)
class Metric:
    """One number: what it is, and how it is computed.

    Attributes:
        name: key under which records hold it.
        version: raised whenever the same input may give another number.
        unit: ``nats``, ``share``, ``probability``, ``percent``, ``seconds``, ``bytes``, ``steps``,
            ``forwards`` or ``1`` (a pure number).
        better: ``higher``, ``lower`` or ``target`` (nearer to :attr:`target` is better).
        needs: what it needs beyond the answers of the model it measures; checked before it is computed.
        formula: in words short enough for a table's foot.
        source: paper, repository or this project.
        compute: given the scene, its value; raises :class:`CannotError` with the reason where there is none.
        target: the value to be near to, where ``better`` is ``target``.
        cost: of computing it.
        interval: keys of the interval in a record are ``<interval>_low`` and ``<interval>_high``; "": name.

    Example:
        >>> flat = Metric("zero", 1, "1", "lower", (), "0", "textbook", lambda scene: Value(0.0))
        >>> flat.compute(None).value, flat.interval
        (0.0, 'zero')
    """

    name: str
    version: int
    unit: Literal["nats", "share", "probability", "percent", "seconds", "bytes", "steps", "forwards", "1"]
    better: Literal["higher", "lower", "target"]
    needs: tuple[Need, ...]
    formula: str
    source: str
    compute: Callable[[Scene], Value]
    target: float | None = None
    cost: Cost = "arrays"
    interval: str = ""

    def __post_init__(self) -> None:
        if not self.interval:
            object.__setattr__(self, "interval", self.name)


def evaluate(metric: Metric, scene: Scene) -> Value:
    """A metric's value on a scene, or the reason why it has none; never silently missing.

    Args:
        metric: from :data:`curerec.evaluation.METRICS`.
        scene: what is at hand.

    Returns:
        The value; where something it needs is not there, or the arrays do not allow it, ``missing`` says so.

    Example:
        >>> from curerec.evaluation.scene import Scene
        >>> dear = Metric("x", 1, "1", "lower", ("tuning",), "x", "textbook", lambda scene: Value(1.0))
        >>> evaluate(dear, Scene.__new__(Scene)).missing  # a scene without anything
        'the recipe of the fine-tuning is not at hand'
    """
    for need in metric.needs:
        reason = LACKS[need](scene)
        if reason:
            return Value.none(reason)
    try:
        return metric.compute(scene)
    except CannotError as error:
        return Value.none(error.what, **({"mend": error.mend} if error.mend else {}))
    except ConfigError as error:
        return Value.none(str(error))


def _lacks(test: Callable[[Any], bool], reason: str) -> Callable[[Any], str]:
    return lambda scene: "" if test(scene) else reason


def _lacks_retrains(scene: Any, least: int) -> str:
    if len(scene.retrains) >= least:
        return ""
    if len(scene.references) > len(scene.retrains):  # all but the model that is measured
        return ITSELF
    return NO_SECOND if scene.retrains else NO_RETRAIN


NO_RETRAIN = "no retrained model was given: in production none exists, and distances to it cannot be computed"
NO_SECOND = "a single retrained model was given: the floor is the distance between two"
ITSELF = "it is a retrained model itself, and too few others were given to hold it against"
NO_SEEDS = "averaging over seeds needs at least 3 unlearned and 3 retrained models"

#: Given the scene: why a need is not met; "" where it is.
LACKS: dict[Need, Callable[[Any], str]] = {
    "labels": lambda scene: "",
    "control": _lacks(lambda s: len(s.split.control) >= 2, "fewer than 2 control examples"),
    "original": _lacks(lambda s: s.original is not None, "the original recommender was not given"),
    "retrain": lambda s: _lacks_retrains(s, 1),
    "retrain_seeds": lambda s: _lacks_retrains(s, 2),
    "seeds": _lacks(lambda s: min(1 + len(s.seeds), len(s.retrains)) >= 3, NO_SEEDS),
    "model": _lacks(lambda s: s.subject.model is not None, "the model itself is not at hand"),
    "tuning": _lacks(
        lambda s: getattr(s, "tuning", None) is not None, "the recipe of the fine-tuning is not at hand"
    ),
}
