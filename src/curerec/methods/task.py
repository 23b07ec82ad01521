"""What a method is given: a recommender, a request applied to its data, and nothing it must not see.

The test examples and any retrained model are not in here, so no method can be chosen or stopped by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curerec.circuits.adapter import Deltas, weight_deltas
from curerec.interactions import Interactions
from curerec.progress import Clock
from curerec.prompts.encoding import Encoder, Prompts, queries
from curerec.recommender.copies import base_of, copied
from curerec.recommender.runtime import RuntimeConfig
from curerec.recommender.score import score
from curerec.recommender.stored_answers import StoredAnswers
from curerec.recommender.tune import TuneConfig
from curerec.recommender.units import Units
from curerec.recommender.waypoints import StoredWaypoints
from curerec.records import Examples, ForgetSplit, Outcome, Recommender

State = dict[str, torch.Tensor]


@dataclass
class Task:
    """One unlearning request.

    Attributes:
        original: the recommender as trained (theta_o); never changed.
        base_state: weights before full fine-tuning; None with LoRA, where the adapter can be switched off.
        data: the interactions, deleted ones included (their prompts are what is to be forgotten).
        forget: D_f, what the model was trained on and must forget.
        retain: D_r with cleaned histories.
        retain_before: the same examples with the histories that they had when theta_o was trained.
        dropped: what theta_o was trained on and is in neither, for want of history; None: nothing.
        control: D_c, never trained on.
        valid: D_v, for choices.
        train_rows: interactions that graph and popularity may use.
        deleted: bool [n_rows], all interactions that the request deletes.
        tuning: the recipe that the original was fine-tuned with.
        fresh: makes a model as it was before fine-tuning (for a retrain).
        seed: of everything random in the request.
        clock: stages and their seconds.
        answered: what theta_o and the base answered in training, where that is stored.
        as_trained: where requests before this one made theta_o: what the recommender as trained answered the
            examples that are left, if that was kept.
        waypoints: of theta_o's training, where they were kept.
        runtime: how trainings of the request use the machine: as the recommender's did, since one
            that needs it then needs it again.
        retain_side: folder of what training and earlier requests of the recommender left; None: nothing
            is taken from there and nothing left.
    """

    original: Recommender
    base_state: State | None
    data: Interactions
    forget: Examples
    retain: Examples
    control: Examples
    valid: Examples
    train_rows: np.ndarray
    deleted: np.ndarray
    tuning: TuneConfig
    fresh: Callable[[], Any]
    retain_before: Examples
    dropped: Examples | None = None
    seed: int = 0
    clock: Clock = field(default_factory=Clock)
    answered: StoredAnswers | None = field(default=None, repr=False)
    as_trained: StoredAnswers | None = field(default=None, repr=False)
    waypoints: StoredWaypoints | None = field(default=None, repr=False)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    retain_side: Path | None = None
    shared: dict[Any, Any] = field(default_factory=dict, repr=False)  # what stages of one request make once

    @classmethod
    def of(cls, split: ForgetSplit, **rest: Any) -> Task:
        """A task from a split; the test part stays behind."""
        rows = np.unique(np.r_[split.retain.target, split.retain.history[split.retain.history >= 0].ravel()])
        return cls(
            forget=split.forget,
            retain=split.retain,
            retain_before=split.retain if split.retain_before is None else split.retain_before,
            dropped=split.dropped,
            control=split.control,
            valid=split.valid,
            train_rows=rows,
            deleted=split.deleted,
            **rest,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """Encoder of the recommender's template and catalogue."""
        titles = self.data.titles["title"].to_pylist()
        return Encoder(self.original.tokenizer, self.original.template, titles)

    @property
    def answers(self) -> tuple[int, int]:
        """Token ids of (no, yes)."""
        return self.original.answers

    def encode(self, examples: Examples) -> Prompts:
        """Prompts of examples."""
        return self.encoder.encode(queries(self.data, examples))

    def sample(self, examples: Examples, size: int, salt: int) -> Examples:
        """At most ``size`` examples, drawn without replacement."""
        return examples.take(self.sample_index(len(examples), size, salt))

    @cached_property
    def forget_prompts(self) -> Prompts:
        """Prompts of D_f."""
        return self.encode(self.forget)

    def original_logits(self, examples: Examples, prompts: Prompts | None = None) -> np.ndarray:
        """Answer logits of theta_o, float32 [n, 2]; scored are only those that were not stored in training.

        Args:
            examples: [n].
            prompts: of them, where they are at hand.
        """
        return self._logits(lambda: self.original.model, examples, prompts, base=False)

    def base_logits(self, examples: Examples, prompts: Prompts | None = None) -> np.ndarray:
        """The same of the model before fine-tuning, which is loaded only if it has to be asked."""
        return self._logits(self.base_model, examples, prompts, base=True)

    def _logits(
        self, model: Callable[[], Any], examples: Examples, prompts: Prompts | None, *, base: bool
    ) -> np.ndarray:
        if self.answered is None:
            logits, found = np.zeros((len(examples), 2), np.float32), np.zeros(len(examples), bool)
        else:
            logits, found = self.answered.find(examples, base=base)
        if not found.all():
            rest = self.encode(examples.take(~found)) if prompts is None else prompts.take(~found)
            logits[~found] = score(model(), rest, self.answers)
        return logits

    def retain_logits(self, examples: Examples, prompts: Prompts | None = None) -> np.ndarray:
        """Answer logits that an update holds D_r to, float32 [n, 2].

        Those of the recommender as trained where they were kept, else theta_o's. In a sequence of requests
        theta_o is what the request before left: held to that, what each leaves unrestored adds up.

        Args:
            examples: of D_r, [n].
            prompts: of them, where they are at hand.

        Source: this project's own.
        """
        if self.as_trained is None:
            return self.original_logits(examples, prompts)
        logits, found = self.as_trained.find(examples)
        if not found.all():
            rest = None if prompts is None else prompts.take(~found)
            logits[~found] = self.original_logits(examples.take(~found), rest)
        return logits

    @cached_property
    def forget_original(self) -> np.ndarray:
        """Answer logits of theta_o on D_f, float32 [n, 2]."""
        return self.original_logits(self.forget, self.forget_prompts)

    @cached_property
    def forget_base(self) -> np.ndarray:
        """Answer logits of the model before fine-tuning on D_f, float32 [n, 2]; scored once a request."""
        return self.base_logits(self.forget, self.forget_prompts)

    def sample_index(self, n: int, size: int, salt: int) -> np.ndarray:
        """At most ``size`` of n indices, drawn without replacement, in order."""
        if n <= size:
            return np.arange(n)
        return np.sort(np.random.default_rng([self.seed, salt]).choice(n, size, replace=False))

    def deltas(self, units: Units) -> Deltas:
        """What full fine-tuning changed, by parameter name; empty with LoRA (the adapter is the change).

        Args:
            units: of the model.
        """
        if self.base_state is None:
            return {}
        return weight_deltas(self.original.model, self.base_state, units)

    def copy_of_model(self, *, whole: bool = False) -> Any:
        """A copy of theta_o to change; see :func:`curerec.recommender.copies.copied`."""
        return copied(self.original.model, whole=whole)

    def base_model(self) -> Any:
        """The model before fine-tuning, to be asked; ``fresh`` makes one to be trained."""
        return base_of(self.original.model, self.fresh)


Method = Callable[[Task, Any], Outcome]
