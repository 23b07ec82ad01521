"""How much of the way from the original to a retrain is left, measured against the retrain's own scatter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation.bootstrap import interval, weights
from curerec.evaluation.distance import mean_of
from curerec.evaluation.divergence import jsd, jsd_each
from curerec.evaluation.inputs import MEND, probabilities
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Ground, Scene

RANKABLE = 2.0  # PROTOCOL 2: below this ratio nothing measurable was there to forget
MEAN_SEEDS = 3  # PROTOCOL 2: seed noise is not averaged out with fewer


@dataclass(frozen=True, eq=False)
class Reference:
    """Retrained models and the original on one set: the scale that every method is put on.

    Attributes:
        retrain: P(yes) of models retrained without the data, [seeds, n], at least 2 seeds.
        original: P(yes) of the model before unlearning, [n].
        measure: divergence of two [n], nats; :func:`curerec.evaluation.divergence.jsd` or one beside it.

    Raises:
        ConfigError: fewer than 2 retrain seeds (there is no floor then), or sets that differ.

    Source: this project, PROTOCOL section 2.

    Example:
        >>> ref = Reference(np.array([[0.50, 0.50], [0.52, 0.48]]), np.array([0.8, 0.2]))
        >>> ref.rankable, round(ref.residual(ref.ceiling), 6), round(ref.residual(ref.floor), 6)
        (True, 1.0, 0.0)
    """

    retrain: np.ndarray
    original: np.ndarray
    measure: Callable[[np.ndarray, np.ndarray], float] = jsd

    def __post_init__(self) -> None:
        retrain = probabilities(self.retrain, "predictions of the retrained models")
        original = probabilities(self.original, "predictions of the original")
        if retrain.ndim != 2 or len(retrain) < 2:
            found = len(retrain) if retrain.ndim == 2 else 1
            raise ConfigError(
                f"{found} retrained model; the floor is the distance between two seeds",
                where="reference",
                mend="Retrain with at least 2 seeds and give their predictions as [seeds, n]",
            )
        if original.shape != retrain.shape[1:]:
            raise ConfigError(
                f"shapes {retrain.shape} and {original.shape} do not pair", where="reference", mend=MEND
            )
        object.__setattr__(self, "retrain", retrain)
        object.__setattr__(self, "original", original)

    @cached_property
    def floor(self) -> float:
        """Mean distance over all pairs of retrain seeds: chance alone."""
        return float(np.mean([self.measure(a, b) for a, b in combinations(self.retrain, 2)]))

    @cached_property
    def ceiling(self) -> float:
        """Mean distance of the original to the retrain seeds: nothing done."""
        return self.distance(self.original)

    @property
    def ratio(self) -> float:
        """``ceiling / floor``; inf where the floor is 0 and the ceiling is not, nan where both are."""
        if self.floor == 0:
            return float("inf") if self.ceiling > 0 else float("nan")
        return self.ceiling / self.floor

    @property
    def rankable(self) -> bool:
        """Whether methods may be ranked by it: ``ceiling >= 2 floor`` (and above 0)."""
        return self.ceiling > 0 and self.ceiling >= RANKABLE * self.floor

    def distance(self, p: np.ndarray) -> float:
        """Mean distance of a model to the retrain seeds, every seed of it paired with each of theirs.

        Args:
            p: P(yes), [n] or [seeds, n].
        """
        mine = np.atleast_2d(self._matching(p))
        return float(np.mean([self.measure(a, b) for a in mine for b in self.retrain]))

    def residual(self, distance: float) -> float:
        """``(distance - floor) / (ceiling - floor)``; nan unless the ceiling is above the floor.

        Args:
            distance: as :meth:`distance` gives it. Read the result only where :attr:`rankable`.
        """
        if not self.ceiling > self.floor:
            return float("nan")
        return (distance - self.floor) / (self.ceiling - self.floor)

    def jsd_mean(self, p: np.ndarray) -> float:
        """Distance between seed-averaged predictions: what is left when seed noise is averaged out.

        Args:
            p: P(yes) of the unlearned models, [seeds, n].

        Raises:
            ConfigError: fewer than 3 seeds on either side.
        """
        mine = self._matching(p)
        seeds = (len(mine) if mine.ndim == 2 else 1, len(self.retrain))
        if min(seeds) < MEAN_SEEDS:
            raise ConfigError(
                f"{seeds[0]} unlearned and {seeds[1]} retrained seeds; averaging needs {MEAN_SEEDS} of each",
                where="jsd_mean",
                mend="Run more seeds, or read the distance instead",
            )
        return self.measure(mine.mean(0), self.retrain.mean(0))

    def _matching(self, p: np.ndarray) -> np.ndarray:
        p = probabilities(p, "predictions")
        if p.ndim not in (1, 2) or p.shape[-1] != len(self.original):
            raise ConfigError(
                f"shape {p.shape} does not fit {self.retrain.shape}", where="predictions", mend=MEND
            )
        return p


NO_ROOM = "the original is no farther from the retrained models than these from each other"


@dataclass(frozen=True)
class Scale:
    """Distances of each example: of the model, between the retrains, and of the original. [n] each, nats."""

    mine: np.ndarray
    floor: np.ndarray
    ceiling: np.ndarray

    @classmethod
    def of(cls, mine: np.ndarray, retrains: Sequence[np.ndarray], original: np.ndarray) -> Scale:
        """From P(yes) of the model, of each retrained model, and of the original, [n] each.

        Example:
            >>> half = np.full(3, 0.5)
            >>> Scale.of(half, [half, half + 0.01], half + 0.3).residual() < 0  # nearer than they are
            True
        """
        return cls(
            np.mean([jsd_each(mine, r) for r in retrains], axis=0),
            np.mean([jsd_each(a, b) for a, b in combinations(retrains, 2)], axis=0),
            np.mean([jsd_each(original, r) for r in retrains], axis=0),
        )

    def residual(self) -> float:
        """``(jsd - floor) / (ceiling - floor)``; nan unless the ceiling is above the floor."""
        room = self.ceiling.mean() - self.floor.mean()
        return float((self.mine.mean() - self.floor.mean()) / room) if room > 0 else float("nan")

    def interval(self, *, draws: int, seed: int, groups: np.ndarray) -> tuple[float, float]:
        """95 % interval over whole users, all three distances drawn together.

        Raises:
            CannotError: in some draws the ceiling is not above the floor: there is no interval.
        """
        kept = []
        for w in weights(len(self.mine), draws=draws, seed=seed, groups=groups):
            floor, room = w @ self.floor, w @ (self.ceiling - self.floor)
            if not (room > 0).all():
                raise CannotError(NO_ROOM)
            kept.append((w @ self.mine - floor) / room)
        return interval(np.concatenate(kept))


def scaled(scale: Scale, user: np.ndarray, ground: Ground) -> Value:
    """The residual as a value with its interval."""
    value = scale.residual()
    if not np.isfinite(value):
        raise CannotError(NO_ROOM)
    low, high = None, None
    with contextlib.suppress(ConfigError):  # few users, or draws without room: no interval
        low, high = scale.interval(draws=ground.draws, seed=ground.seed, groups=user)
    floor, ceiling = float(scale.floor.mean()), float(scale.ceiling.mean())
    rankable = ceiling >= RANKABLE * floor
    details = {"floor_jsd": floor, "ceiling_jsd": ceiling, "rankable": rankable}
    return Value(value, low, high, n=len(user), details=details)


def residual_of(scene: Scene) -> Value:
    """The residual of a scene's subject, with its interval over users."""
    ground = scene.ground
    assert scene.original is not None
    yes = [ground.p_yes(one, "forget") for one in (scene.subject, scene.original, *scene.retrains)]
    return scaled(Scale.of(yes[0], yes[2:], yes[1]), ground.user("forget"), ground)


def _jsd_mean(scene: Scene) -> Value:
    ground = scene.ground
    mine = np.mean([ground.p_yes(one, "forget") for one in (scene.subject, *scene.seeds)], axis=0)
    theirs = np.mean([ground.p_yes(one, "forget") for one in scene.retrains], axis=0)
    return mean_of(jsd_each(mine, theirs), ground.user("forget"), scene)


RESIDUAL = Metric(
    "residual",
    1,
    "1",
    "lower",
    ("retrain_seeds", "original"),
    "(jsd - floor) / (ceiling - floor): 0 = as a retrain, 1 = nothing done, above 1 = worse than nothing",
    "this project",
    residual_of,
)
JSD_MEAN = Metric(
    "jsd_mean",
    1,
    "nats",
    "lower",
    ("seeds",),
    "jsd between predictions averaged over at least 3 seeds on either side",
    "this project",
    _jsd_mean,
)
