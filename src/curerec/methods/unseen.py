"""Words that only deleted data showed: a retrain leaves their embeddings where the base has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from curerec.methods.rules import Gradients
from curerec.methods.task import Task
from curerec.recommender.units import units_of
from curerec.records import Examples


def unseen_tokens(task: Task) -> np.ndarray:
    """Token ids that theta_o was trained on and that no prompt of D_r shows any more, int64, ascending.

    Those of titles that D_f, a history of before or an example without history enough shows and D_r does not,
    less those that D_r's titles, the template or the answers have, too.

    Args:
        task: the request.
    """
    encoder = task.encoder
    shown = _items(task, task.retain)
    now = np.flatnonzero(shown)
    dropped = () if task.dropped is None else (task.dropped,)
    gone = np.flatnonzero(_items(task, task.forget, task.retain_before, *dropped) & ~shown)
    if not len(gone):
        return np.zeros(0, np.int64)

    def tokens(items: Iterable[int]) -> set[int]:
        return {token for item in items for token in encoder.title(item)}

    left = tokens(now.tolist()) | encoder.frame(task.retain.places, _ratings(task)) | set(task.answers)
    return np.asarray(sorted(tokens(gone.tolist()) - left), np.int64)


def _items(task: Task, *parts: Examples) -> np.ndarray:
    """Which items prompts of these examples show or ask about, bool [n_items].

    Marked, not sorted: there are many times as many rows as items.
    """
    marked = np.zeros(len(task.data.items), bool)
    for part in parts:
        marked[task.data.item_code[part.target]] = True
        marked[task.data.item_code[part.history[part.history >= 0]]] = True
    return marked


def _ratings(task: Task) -> list[float]:
    """The distinct ratings that histories of D_r hold; any number is one, and a template may write it out."""
    history = task.retain.history
    shown = task.data.rating[history[history >= 0]].astype(np.float32)  # as prompts have them
    found: list[float] = pc.unique(pa.array(shown)).to_pylist()  # by hash, not by sorting all of them
    return found


@dataclass(frozen=True)
class Unseen:
    """Rows of the token embedding that a retrain never moves.

    No prompt of D_r gives them a gradient, so wherever training ends they are the base's (but for weight
    decay, where a recipe has one). It is the one part of a retrain that is known without it.

    Attributes:
        name: of the embedding's parameter.
        rows: token ids, int64 [n].
        base: their values before fine-tuning, [n, d_model].
    """

    name: str
    rows: torch.Tensor
    base: torch.Tensor

    @classmethod
    def of(cls, task: Task) -> Unseen | None:
        """Those of a request; None where there are none, or an adapter leaves the embedding alone.

        Source: this project's own.
        """
        if task.base_state is None:
            return None
        tokens = unseen_tokens(task)
        branches = units_of(task.original.model, "projection").branches
        name = next((b.weight for b in branches if b.kind == "embedding"), None)
        if name is None or not len(tokens):
            return None
        at = dict(task.original.model.named_parameters(remove_duplicate=False))[name]
        rows = torch.from_numpy(tokens)
        return cls(
            name, rows.to(at.device), task.base_state[name][rows.to(task.base_state[name].device)].to(at)
        )

    @torch.no_grad()
    def put_back(self, model: Any) -> None:
        """Set the rows of a model to the base's."""
        self._of(model)[self.rows] = self.base

    @torch.no_grad()
    def kept_of(self, model: Any) -> Callable[[], None]:
        """Note the rows of a model as they are; what is handed back sets them so again."""
        before = self._of(model)[self.rows].clone()

        @torch.no_grad()
        def again() -> None:
            self._of(model)[self.rows] = before

        return again

    def _of(self, model: Any) -> torch.Tensor:
        found: torch.Tensor = dict(model.named_parameters(remove_duplicate=False))[self.name]
        return found

    def hold(self, gradient: Gradients) -> None:
        """Take the rows out of a gradient, in place: they stay where they are."""
        if self.name in gradient:
            gradient[self.name][self.rows] = 0
