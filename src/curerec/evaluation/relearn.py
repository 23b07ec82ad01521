"""How fast does the memory come back when a few of the deleted examples are shown again?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from curerec.evaluation.candidate import Candidate
from curerec.evaluation.metric import CannotError, Metric, Value
from curerec.evaluation.scene import Ground, Scene
from curerec.evaluation.utility import nll
from curerec.prompts.encoding import Prompts
from curerec.recommender.copies import copied, free_tuned
from curerec.recommender.score import answer_logits, device_of, to_batch
from curerec.recommender.tune import TuneConfig, optimise

SHARE = 0.05  # of D_f that is shown again, PROTOCOL section 2
LEAST = 8  # examples shown, where 5 % are fewer
BATCH = 64
SLOWER = 0.1  # of the fine-tuning's rate: at the full rate half of the gap is back within a step or two
MAX_STEPS = 60
DRAWS = 5  # sets of examples that are shown

NO_GAP = "the retrained models are no worse on what is shown than the original: nothing to forget"
NEITHER = "half of the gap came back neither here nor in a retrained model within the steps allowed"


def shown(n: int, draw: int, *, seed: int) -> np.ndarray:
    """Which of n deleted examples the attacker has, int, sorted: 5 %, at least 8, the same for all models.

    Example:
        >>> len(shown(400, 0, seed=0)), len(shown(40, 0, seed=0))
        (20, 8)
    """
    size = min(n, max(LEAST, round(SHARE * n)))
    return np.sort(np.random.default_rng([seed, 29, draw]).choice(n, size, replace=False))


def steps_to(level: float, losses: np.ndarray) -> tuple[float, bool]:
    """Steps until a loss has come down to a level, between two steps by a straight line.

    Args:
        level: nats.
        losses: after 0, 1, 2, ... steps, [steps + 1].

    Returns:
        steps (0 where it was that low from the start), and whether they are censored: True where the level
        was not reached, and the steps are all that were taken.

    Example:
        >>> steps_to(0.75, np.array([1.0, 1.0, 0.5])), steps_to(0.75, np.array([1.0, 0.9]))
        ((1.5, False), (1.0, True))
    """
    below = np.flatnonzero(losses <= level)
    if not len(below):
        return float(len(losses) - 1), True
    k = int(below[0])
    if k == 0:
        return 0.0, False
    return float(k - 1 + (losses[k - 1] - level) / (losses[k - 1] - losses[k])), False


def curve(ground: Ground, model: Any, prompts: Prompts, *, seed: int, stop_at: float) -> np.ndarray:
    """Loss on a few prompts while a copy of the model is fine-tuned on them, nats, [steps done + 1].

    AdamW at a tenth of the recipe's rate, held constant; every step takes all prompts (at most 64).

    Args:
        ground: with the recipe.
        model: left as it is; what may change is what the original's fine-tuning changed.
        prompts: shown.
        seed: of dropout.
        stop_at: no further steps once the loss is this low.
    """
    assert ground.tuning is not None
    tuned = copied(model)
    free_tuned(tuned)
    params = [p for p in tuned.parameters() if p.requires_grad]
    answers, device = ground.recommender.answers, device_of(tuned)
    batches = [np.arange(len(prompts))[k : k + BATCH] for k in range(0, len(prompts), BATCH)]
    label = torch.from_numpy(prompts.label.astype(np.int64)).to(device)

    # A step over all prompts passes them forward before it moves: a look at what the last one left, for free.
    one_pass = len(batches) == 1 and not any(m.training for m in tuned.modules())

    def look() -> float:
        return float(nll(ground.score(tuned, prompts), prompts.label).mean())

    losses: list[float] = [] if one_pass else [look()]

    def low_enough() -> bool:
        return bool(losses) and losses[-1] <= stop_at

    if low_enough():
        return np.array(losses)

    def gradients(step: int) -> None:
        index = batches[step % len(batches)]
        logits = answer_logits(tuned, *to_batch(prompts, index, device), answers)
        loss = torch.nn.functional.cross_entropy(logits, label[torch.from_numpy(index).to(device)])
        if one_pass:
            losses.append(float(loss.detach()))
        loss.backward()

    def after(step: int) -> bool:
        if not one_pass:
            losses.append(look())
        return low_enough()  # with one pass a step too many was taken, of a copy that is dropped

    config = TuneConfig(lr=SLOWER * ground.tuning.lr, schedule="constant", warmup=0)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        optimise(params, MAX_STEPS, gradients, config, after_step=after)
    if one_pass and not low_enough():
        losses.append(look())
    return np.array(losses)


def levels(scene: Scene) -> list[float | None]:
    """By draw, the loss half-way back: between the original's and the mean of the retrained models'.

    None where the retrained models are no worse than the original on what is shown.
    """
    assert scene.original is not None
    ground, label = scene.ground, scene.split.forget.label
    out: list[float | None] = []
    for draw in range(DRAWS):
        rows = shown(len(label), draw, seed=ground.seed)
        before, *after = (
            float(nll(ground.memory(c, "forget")[rows], label[rows]).mean())
            for c in (scene.original, *scene.retrains)
        )
        reached = float(np.mean(after))
        out.append((before + reached) / 2 if reached > before else None)
    return out


def relearned(scene: Scene, one: Candidate, goals: list[float | None]) -> list[tuple[float, bool] | None]:
    """Steps a model needs down to the level of each draw, and whether they are censored; computed once.

    Raises:
        CannotError: the model is not at hand, or several answer together.
    """
    key = ("relearn", scene.ground.seed, tuple(goals))
    if key in one.memo:
        return one.memo[key]
    if one.model is None:
        raise CannotError("the model itself is not at hand")
    if hasattr(one.model, "answer_logits"):
        raise CannotError("several models answer together: there is no one model to fine-tune")
    ground = scene.ground
    out: list[tuple[float, bool] | None] = []
    for draw, level in enumerate(goals):
        if level is None:
            out.append(None)
            continue
        prompts = ground.prompts("forget").take(shown(len(scene.split.forget), draw, seed=ground.seed))
        losses = curve(ground, one.model, prompts, seed=ground.seed + draw, stop_at=level)
        out.append(steps_to(level, losses))
    one.memo[key] = out
    return out


def _steps(scene: Scene) -> Value:
    found = [f for f in relearned(scene, scene.subject, levels(scene)) if f]
    if not found:
        raise CannotError(NO_GAP)
    steps = np.array([s for s, _ in found])
    details = {"by_draw": steps.tolist(), "censored": sum(c for _, c in found)}
    return Value(float(steps.mean()), *_spread(steps, np.ones(len(steps))), n=len(found), details=details)


def _ratio(scene: Scene) -> Value:
    goals = levels(scene)
    mine = [f for f in relearned(scene, scene.subject, goals) if f]
    theirs = [[f for f in relearned(scene, r, goals) if f] for r in scene.retrains]
    if not mine:
        raise CannotError(NO_GAP)
    own = np.array([s for s, _ in mine])
    other = np.mean([[s for s, _ in r] for r in theirs], axis=0)
    details = {
        "steps": own.tolist(),
        "steps_retrain": other.tolist(),
        "censored": sum(c for _, c in mine),
        "censored_retrain": sum(c for r in theirs for _, c in r),
    }
    if not other.sum() > 0:
        raise CannotError(NO_GAP)
    if details["censored"] == len(mine) and details["censored_retrain"] == len(mine) * len(theirs):
        raise CannotError(NEITHER)
    return Value(float(own.sum() / other.sum()), *_spread(own, other), n=len(own), details=details)


def _spread(above: np.ndarray, below: np.ndarray) -> tuple[float | None, float | None]:
    """95 % interval of a ratio of sums over the draws of what is shown, no lower than 0.

    Linearised, with Student's t: a percentile bootstrap of five values covers .84. How far retrains of other
    seeds would lie is not in it.

    Source: Cochran 1977, section 6.4 (standard error of a ratio).
    """
    if len(above) < 2:
        return None, None
    ratio = float(above.sum()) / max(float(below.sum()), 1e-9)
    error = (above - ratio * below).std(ddof=1) / (max(float(below.mean()), 1e-9) * np.sqrt(len(above)))
    half = float(student.ppf(0.975, len(above) - 1) * error)
    return max(0.0, ratio - half), ratio + half


_SOURCE = "this project; a common level as in Tarun et al. 2021, arXiv 2111.08947 (anamnesis index)"
RELEARN_STEPS = Metric(
    "relearn_steps",
    2,  # until 1 its interval was of a bootstrap of five
    "steps",
    "higher",
    ("model", "original", "tuning", "retrain"),
    "AdamW steps at a tenth of the recipe's rate on 5 % of D_f until the loss on them is half-way from "
    "the retrained models' to the original's; mean of 5 draws; 60 steps at most, then counted as 60",
    _SOURCE,
    _steps,
    cost="attack",
)
RELEARN_RATIO = Metric(
    "relearn_ratio",
    2,  # until 1 its interval was of a bootstrap of five
    "1",
    "target",
    ("model", "original", "tuning", "retrain"),
    "relearn_steps over those of the retrained models to the same level; below 1 = the memory was hidden "
    "rather than gone; what is censored (details) counts with all its steps",
    _SOURCE,
    _ratio,
    target=1.0,
    cost="attack",
)
