"""Answers on D_f that forgetting may aim for, as logits: forget losses with a target."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from curerec.methods.loop import free, tuned_names
from curerec.methods.losses import Aim
from curerec.methods.task import Task
from curerec.recommender.score import device_of, score
from curerec.recommender.tune import Progress, TuneConfig, tune

#: How the teacher of E2URec is tuned on D_f, as published.
TUNING = TuneConfig(epochs=1.5, batch_size=16, lr=5e-5, schedule="constant", warmup=0)
ALPHA = 2.0  # of E2URec, as published
MOST = 1024.0  # strength beyond which a calibrated teacher is not sought
CONTROL = 1000  # at most so many of D_c say what unseen data costs


def targets(task: Task, aim: Aim, *, alpha: float | None = None) -> torch.Tensor:
    """Answer logits to aim for, one row an example of D_f, [n, 2].

    Args:
        task: the request.
        aim: ``label_free``: the share of yes among D_r's answers, for every example alike. ``teacher``:
            :func:`forgetting_teacher`. ``calibrated``: the same, so strong that its mean loss on D_f is
            theta_o's on D_c, which nobody was trained on; where theta_o's own loss on D_f is that large
            already, theta_o's answers.
        alpha: strength of ``teacher``; none: :data:`ALPHA`.

    Source: METHOD section 7; ``label_free`` and ``calibrated`` are this project's own.
    """
    device = device_of(task.original.model)
    original = torch.from_numpy(task.forget_original).to(device)
    if aim == "label_free":
        yes = torch.tensor(float(task.retain.label.mean())).clamp(1e-3, 1 - 1e-3)
        return torch.stack([(1 - yes).log(), yes.log()]).to(original).expand_as(original)
    tuned = score(augmented(task, TUNING), task.forget_prompts, task.answers)
    raised = torch.from_numpy(tuned).to(device)
    strength = ALPHA if alpha is None else alpha
    if aim == "calibrated":
        unseen = task.sample(task.control, CONTROL, 78)
        logits = torch.from_numpy(score(task.original.model, task.encode(unseen), task.answers))
        wanted = float(F.cross_entropy(logits, torch.from_numpy(unseen.label.astype("int64"))))
        label = torch.from_numpy(task.forget_prompts.label.astype("int64")).to(device)
        strength = calibrated(original, raised, label, wanted)
    return forgetting_teacher(original, raised, strength)


def augmented(task: Task, config: TuneConfig, *, progress: Progress | None = None) -> Any:
    """A copy of theta_o tuned on D_f further: what memory of it would look like were there more.

    Args:
        task: the request.
        config: of the tuning.
        progress: told (done, total) steps.
    """
    model = task.copy_of_model()
    free(model, tuned_names(model))
    return tune(
        model,
        task.forget_prompts,
        task.answers,
        config,
        seed=task.seed,
        runtime=task.runtime,
        progress=progress,
    )


def forgetting_teacher(original: torch.Tensor, augmented: torch.Tensor, alpha: float) -> torch.Tensor:
    """Logits ``z_o - alpha ReLU(z_aug - z_o)``: what tuning on D_f raises is lowered.

    Args:
        original: z_o, [batch, 2].
        augmented: z_aug, of theta_o tuned on D_f, [batch, 2].
        alpha: strength.

    Source: Wang et al. 2024 (E2URec), arXiv 2403.03536, eq. 5.
    """
    return original - alpha * F.relu(augmented - original)


def calibrated(
    original: torch.Tensor, augmented: torch.Tensor, label: torch.Tensor, wanted: float, *, halvings: int = 40
) -> float:
    """The strength at which the teacher's mean loss is ``wanted``, nats; 0 where theta_o's is no smaller.

    Args:
        original, augmented: as for :func:`forgetting_teacher`, [n, 2].
        label: int64 [n].
        wanted: mean cross-entropy.
        halvings: of the interval.

    Returns:
        :data:`MOST` at the most, where tuning on D_f raised next to nothing.
    """

    def loss(alpha: float) -> float:
        return float(F.cross_entropy(forgetting_teacher(original, augmented, alpha), label))

    if loss(0.0) >= wanted:
        return 0.0
    low, high = 0.0, 1.0
    while loss(high) < wanted and high < MOST:
        low, high = high, 2 * high
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (low, middle) if loss(middle) >= wanted else (middle, high)
    return high
