"""The excess over unseen data: planted memory shows, what moved everywhere does not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit

from curerec.evaluation import METRICS
from curerec.evaluation.candidate import Candidate
from curerec.evaluation.metric import evaluate
from curerec.evaluation.residual import residual_of
from curerec.evaluation.scene import Scene

N = 4000


class Ground:
    """Stored margins in the place of models; a user has ten examples in each part."""

    draws, seed = 200, 0
    split = SimpleNamespace(control=np.zeros(N))

    def p_yes(self, one, part):
        return expit(one.logits[part])

    def user(self, part):
        return np.arange(N) // 10


def scene(*, remembered: float, moved: float, retrains: int = 4, room: float = 1.0) -> Scene:
    """A retrain, and what differs from it: memory of D_f, and a change on both sets alike."""
    rng = np.random.default_rng(0)
    truth = {part: rng.normal(0, 1, N) for part in ("forget", "control")}
    memory = rng.normal(0, 1, N)

    def model(seed, memory_share, everywhere):
        own = np.random.default_rng(seed)
        noise = {part: own.normal(0, 0.2, N) + everywhere * own.normal(0, 1, N) for part in truth}
        kept = {"forget": memory_share * memory, "control": 0.0}
        return Candidate(None, logits={part: truth[part] + noise[part] + kept[part] for part in truth})

    return Scene(
        Ground(),
        model(1, remembered, moved),
        model(2, room, 0.3),
        tuple(model(10 + k, 0.0, 0.0) for k in range(retrains)),
    )


def test_the_original_is_at_one_and_a_retrain_at_zero():
    one = scene(remembered=0.0, moved=0.0)
    assert evaluate(METRICS["excess_residual"], one.of(one.original)).value == pytest.approx(1)
    value = evaluate(METRICS["excess_residual"], one)
    assert value.low < 0 < value.high and abs(value.value) < 0.02
    of_retrain = evaluate(METRICS["excess_jsd"], one.of(one.references[0]))
    assert abs(of_retrain.value) < 0.001 and of_retrain.low < 0 < of_retrain.high


def test_what_moved_everywhere_is_no_memory_but_distance():
    one = scene(remembered=0.0, moved=0.5)
    value = evaluate(METRICS["excess_residual"], one)
    assert abs(value.value) < 0.05 and value.low < 0 < value.high
    assert residual_of(one).value > 0.2  # the residual cannot tell the two apart


def test_memory_shows_with_and_without_a_change_everywhere():
    shares = [
        evaluate(METRICS["excess_residual"], scene(remembered=r, moved=0)).value for r in (0.2, 0.5, 0.8)
    ]
    assert shares == sorted(shares) and 0.1 < shares[1] < 0.5
    both = evaluate(METRICS["excess_residual"], scene(remembered=0.5, moved=0.3))
    assert both.low > 0.05
    assert both.details["excess_original"] > both.details["excess_retrain"]


def test_the_two_parts_of_the_excess_are_said():
    found = evaluate(METRICS["excess_jsd"], scene(remembered=0.5, moved=0))
    assert found.value == pytest.approx(found.details["jsd_forget"] - found.details["jsd_control"])
    assert found.low < found.value < found.high and found.n == 2 * N


def test_where_nothing_was_remembered_there_is_no_scale():
    nothing = evaluate(METRICS["excess_residual"], scene(remembered=0, moved=0, room=-0.0))
    assert nothing.value is None or nothing.low is None  # no room, or none that is there in every draw
    assert (
        "retrained" in evaluate(METRICS["excess_residual"], scene(remembered=0, moved=0, retrains=1)).missing
    )
