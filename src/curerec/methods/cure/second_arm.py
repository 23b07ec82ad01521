"""A second update beside the one that goes back, and the mean of the weights of both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from pydantic import Field

from curerec.config import Strict
from curerec.methods.loop import CLOSED, Update
from curerec.methods.stopping import Watch
from curerec.methods.unlearn import UnlearnConfig


class SecondArm(Strict):
    """An update that begins at theta_o itself; the mean of its weights and the first one's is handed back.

    Nothing goes back in it, it is not drawn to where it began, whole units move, and conflict is asked of the
    whole gradients (``Rules.whole``). Groups, losses, batches and steps are the first one's. Of plain models
    alone: what an adapter changes is a product, and the mean of two products takes twice the rank.
    """

    share: float = Field(0.5, gt=0, lt=1, description="of this one in the mean")
    lr: float | None = Field(None, gt=0, description="none: as of the first")
    push: float | None = Field(None, gt=0, description="none: as of the first")

    def of(self, update: UnlearnConfig) -> UnlearnConfig:
        """Its loop, from that of the first.

        Example:
            >>> first = UnlearnConfig(lr=8e-4, push=4.0, anchor=0.03, projection="preconditioned")
            >>> second = SecondArm(lr=6e-4).of(first)
            >>> second.lr, second.push, second.anchor, second.projection
            (0.0006, 4.0, None, None)
        """
        own = {"lr": self.lr or update.lr, "push": self.push or update.push}
        return update.model_copy(update={**own, "anchor": None, "projection": None, "open_gap": None})


@torch.no_grad()
def mean_of(watch: Watch, first: Update, second: Update, share: float) -> tuple[Update, dict[str, Any]]:
    """The mean of the weights of two updates, looked at.

    What an update that goes back answers wrongly is not what one that does not answers wrongly: the mean is
    nearer to a retrain than either, but on fresh seeds no nearer than one update of as many steps as both
    (docs/experiments.md, "Two arms").

    Args:
        watch: at D_f, D_c and D_v.
        first: its model is changed and handed back.
        second: of the same recommender, and of the same roles.
        share: of the second.

    Returns:
        The update, with a look at the mean as its last, and what the record says of the second.

    Source: Wortsman et al. 2022, arXiv 2203.05482 (the mean of weights fine-tuned from one model); arms that
    differ in going back are this project's own.
    """
    with watch.task.clock.stage("update", told=False):
        other = dict(second.model.named_parameters())
        for name, p in first.model.named_parameters():
            p.lerp_(other[name].to(p), share)
        seen = watch.look(first.model)
    steps = first.steps + second.steps
    stop = f"all {steps} steps of both updates were taken before the membership gap closed"
    if watch.harmed(seen):
        most = watch.config.max_auc_drop
        stop = f"validation AUC fell by more than {most:g}; all {steps} steps of both updates were taken"
    elif watch.closed(seen):
        stop = CLOSED
    trace = (*first.trace, {"step": steps, **seen})
    about = {
        "share": share,
        "update": second.config,
        "steps": second.steps,
        "stop_reason": second.stop_reason,
        "trace": second.trace,
        "conflicts": second.conflicts,
    }
    changed = max(first.n_trainable, second.n_trainable)  # whole units: those of the first are among them
    done = replace(first, trace=trace, stop_reason=stop, steps=steps, n_trainable=changed)
    return done, about
