"""When an update has gone far enough, and when too far, from D_f, D_c and D_v alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from curerec.config import Strict
from curerec.delong import auc_drop
from curerec.errors import ModelError
from curerec.methods.expected import expected_auc
from curerec.methods.task import Task
from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.score import label_nll, p_yes, score

CONFIDENCE = 0.95  # one-sided, of the utility guard


class Stopping(Strict):
    """What is looked at, how often, and what ends an update. Chosen on D_v, D_c and D_f."""

    check_every: int = Field(4, gt=0, description="steps between looks at the membership gap")
    check_size: int = Field(1000, gt=10, description="at most so many of D_f, D_c and D_v are looked at")
    tolerance: float = Field(
        0.0, ge=0, description="membership AUC above the target at which the gap counts as closed"
    )
    max_auc_drop: float = Field(0.002, ge=0, description="utility guard on D_v")
    target: Literal["base", "half", "expected"] = Field(
        "base",
        description="membership AUC to reach: that of the model before fine-tuning, which saw neither D_f "
        "nor D_c (it carries the difference in difficulty of the two sets), 0.5, or what theta_o and base "
        "together say of a retrain's (expected.py)",
    )


@dataclass
class Watch:
    """Looks at a model on samples of D_f, D_c and D_v: what stopping is decided by.

    Source: METHOD section 8; the target is the base model's own membership AUC instead of 0.5, since D_f and
    D_c differ a little in difficulty by chance and the base, which was trained on neither, shows by how much
    (``expected``: how much of that a recommender would show, :mod:`curerec.methods.expected`).
    """

    task: Task
    config: Stopping
    index: np.ndarray = field(init=False)
    forget: Prompts = field(init=False)
    control: Prompts = field(init=False)
    valid: Prompts = field(init=False)
    target: float = field(init=False)
    first: dict[str, float] = field(init=False)
    margin: np.ndarray | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        size = self.config.check_size
        self.index = self.task.sample_index(len(self.task.forget), size, 51)
        self.forget = self.task.forget_prompts.take(self.index)
        reference = self.task.sample_index(len(self.task.control), size, 52)
        control = self.task.control.take(reference)
        self.control = self.task.encode(control)
        self.valid = self.task.encode(self.task.sample(self.task.valid, size, 53))
        original = self.task.original.model
        asked = self.task.original_logits(control, self.control)
        of_original = self.task.forget_original[self.index], asked
        self.first = self.look(original, *of_original)
        self.target = 0.5
        if self.config.target == "half":
            return
        of_base = self.task.forget_base[self.index], self.task.base_logits(control, self.control)
        self.target = self.membership(None, *of_base)
        if self.config.target == "expected":
            label = self.control.label
            losses = label_nll(of_base[1], label), label_nll(of_original[1], label)
            aucs = self.target, self.first["membership_auc"]
            aim = expected_auc(self.task, reference, losses, aucs)
            self.target = parallel.agreed({"target": aim})["target"]

    def _asked(self, model: Any) -> np.ndarray:
        """Answer logits of a model on the sample of D_c, [n, 2]."""
        return score(model, self.control, self.task.answers)

    def membership(
        self, model: Any, on_forget: np.ndarray | None = None, on_control: np.ndarray | None = None
    ) -> float:
        """AUC of the loss attack, D_f against D_c.

        Args:
            model: to attack; not asked where both answers are known.
            on_forget: its answer logits on the sample of D_f, where they are known, [n, 2].
            on_control: the same of D_c.
        """
        if on_forget is None:
            on_forget = score(model, self.forget, self.task.answers)
        if on_control is None:
            on_control = self._asked(model)
        losses = [label_nll(on_forget, self.forget.label), label_nll(on_control, self.control.label)]
        member = np.r_[np.ones(len(losses[0])), np.zeros(len(losses[1]))]
        found = float(roc_auc_score(member, -np.concatenate(losses)))
        return parallel.agreed({"membership_auc": found})["membership_auc"]

    def look(
        self, model: Any, on_forget: np.ndarray | None = None, on_control: np.ndarray | None = None
    ) -> dict[str, float]:
        """Membership AUC and validation AUC of a model; arguments as for :meth:`membership`."""
        logits = score(model, self.valid, self.task.answers)
        if not np.isfinite(logits).all():
            raise ModelError("the update diverged", where="unlearn", mend="Lower update.lr in the recipe")
        margin = logits[:, 1] - logits[:, 0]
        if self.margin is None:  # the first look is at the original itself
            self.margin = margin
        drop, error = auc_drop(self.valid.label, self.margin, margin)
        found = {
            "valid_auc": float(roc_auc_score(self.valid.label, margin)),
            "valid_p_yes": float(p_yes(logits).mean()),
            "auc_drop": drop,
            "auc_drop_se": error,
        }
        return {
            "membership_auc": self.membership(model, on_forget, on_control),
            **parallel.agreed(found),
        }

    def closed(self, seen: dict[str, float]) -> bool:
        """Whether D_f is told from D_c no better than aimed for, on the examples looked at."""
        return seen["membership_auc"] <= self.target + self.config.tolerance

    def harmed(self, seen: dict[str, float]) -> bool:
        """Whether validation AUC fell by more than the guard allows, beyond sampling error.

        A drop that the sample cannot tell from the allowed one (one-sided, 95 %) stops nothing: on 1,000
        examples the AUC of an equally good model comes out lower by 0.002 every other time.
        """
        error = norm.ppf(CONFIDENCE) * seen["auc_drop_se"]
        return seen["auc_drop"] - error > self.config.max_auc_drop
