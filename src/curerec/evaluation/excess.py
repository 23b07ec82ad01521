"""How much farther from a retrain a model lies on the deleted data than on data that nobody was trained on.

A request's data also moved what the model says about everyone else, and a model that is not the retrain lies
apart from it everywhere. What a model still remembers of the deleted data is what it lies farther apart
*there*: on D_c, drawn like the training data, a retrain is as ignorant as on D_f.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from curerec.errors import ConfigError
from curerec.evaluation.bootstrap import interval_of_two, resamples
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.divergence import jsd_each
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Ground, Scene

NO_ROOM = (
    "the original lies no farther from the retrained models on D_f, against D_c, than they do themselves"
)


@dataclass(frozen=True)
class Apart:
    """Distances of each example, nats.

    Attributes:
        forget: on D_f, [n].
        control: on D_c, [m].
    """

    forget: np.ndarray
    control: np.ndarray

    @classmethod
    def between(cls, pairs: list[tuple[Candidate, Candidate]], ground: Ground) -> Apart:
        """Mean over pairs of models."""
        return cls(
            *(
                np.mean([jsd_each(ground.p_yes(a, part), ground.p_yes(b, part)) for a, b in pairs], axis=0)
                for part in ("forget", "control")
            )
        )

    @property
    def excess(self) -> float:
        """Mean distance on D_f minus that on D_c."""
        return float(self.forget.mean() - self.control.mean())

    def drawn(self, weight_f: np.ndarray, weight_c: np.ndarray) -> np.ndarray:
        """The excess of bootstrap draws, [k], from weights [k, n] and [k, m]."""
        return weight_f @ self.forget - weight_c @ self.control


def excess_jsd(scene: Scene) -> Value:
    """The excess of a scene's subject over the retrained models beside it, with an interval over users."""
    ground = scene.ground
    mine = Apart.between([(scene.subject, r) for r in scene.retrains], ground)
    low, high = None, None
    with contextlib.suppress(ConfigError):  # no draw held both sets: no interval
        drawn = np.concatenate([mine.drawn(*w) for w in _resamples(scene)])
        low, high = interval_of_two(drawn, scene.pair)
    details = {"jsd_forget": float(mine.forget.mean()), "jsd_control": float(mine.control.mean())}
    return Value(mine.excess, low, high, n=sum(map(len, scene.pair)), details=details)


def excess_residual(scene: Scene) -> Value:
    """What is left of the original's excess, against the retrained models' own."""
    ground = scene.ground
    assert scene.original is not None
    mine = Apart.between([(scene.subject, r) for r in scene.retrains], ground)
    full = Apart.between([(scene.original, r) for r in scene.retrains], ground)
    none = Apart.between(list(combinations(scene.retrains, 2)), ground)
    room = full.excess - none.excess
    if not room > 0:
        raise CannotError(NO_ROOM)
    low, high = None, None
    with contextlib.suppress(ConfigError):  # draws without room, or none that held both sets: no interval
        low, high = interval_of_two(_draws(mine, full, none, scene), scene.pair)
    details = {"excess_retrain": none.excess, "excess_original": full.excess}
    value = (mine.excess - none.excess) / room
    return Value(value, low, high, n=sum(map(len, scene.pair)), details=details)


def _draws(mine: Apart, full: Apart, none: Apart, scene: Scene) -> np.ndarray:
    """Bootstrap draws of the ratio, all three distances drawn together.

    Raises:
        CannotError: in some draws there is no room: there is no interval.
    """
    kept = []
    for w in _resamples(scene):
        zero = none.drawn(*w)
        room = full.drawn(*w) - zero
        if not (room > 0).all():
            raise CannotError(NO_ROOM)
        kept.append((mine.drawn(*w) - zero) / room)
    return np.concatenate(kept)


def _resamples(scene: Scene):
    ground, sizes = scene.ground, map(len, scene.pair)
    return resamples(*sizes, draws=ground.draws, seed=ground.seed, groups=scene.pair)


EXCESS_JSD = Metric(
    "excess_jsd",
    2,  # 1 had an interval of fewer than five rows, too
    "nats",
    "target",
    ("retrain", "control"),
    "jsd on D_f minus jsd on D_c, both to the retrained models: how much farther the model lies from them on "
    "the deleted data than on data that nobody was trained on",
    "this project",
    excess_jsd,
    target=0.0,
)
EXCESS_RESIDUAL = Metric(
    "excess_residual",
    2,  # 1 had an interval of fewer than five rows, too
    "1",
    "target",
    ("retrain_seeds", "original", "control"),
    "(excess - excess of the retrains among themselves) / (excess of the original - the same), where excess "
    "= jsd on D_f - jsd on D_c: 0 = no memory of the deleted data shows, 1 = nothing done; read beside "
    "jsd_test, since damage everywhere hides memory",
    "this project",
    excess_residual,
    target=0.0,
)
