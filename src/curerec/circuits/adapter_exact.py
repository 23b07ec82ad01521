"""What the model answers with units taken back to the base: the exact version of the adapter scores."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from curerec.circuits.adapter import Deltas, Objective, adapter_scores, unmerged
from curerec.circuits.passes import Cost, each_part, frozen, margin, numpy_type
from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.score import answer_logits, device_of, to_batch
from curerec.recommender.units import Units

MOST = 64  # units scored exactly at most: each takes a pass over all prompts


@dataclass(frozen=True)
class ExactScores:
    """Exact scores of some units.

    Attributes:
        index: which units, int64 [k], the largest first-order score first.
        values: [n, k], float32 (float64 of a model in float64); sign and unit as of ``objective``.
    """

    index: np.ndarray
    values: np.ndarray


def exact_adapter(
    model: Any,
    prompts: Prompts,
    answers: tuple[int, int],
    units: Units,
    deltas: Deltas,
    *,
    most: int = MOST,
    scores: np.ndarray | None = None,
    batch_size: int = 128,
    objective: Objective = "margin",
    cost: Cost | None = None,
) -> ExactScores:
    """Change of the margin, or rise of the loss, with one unit's change by fine-tuning scaled to 0.

    What :func:`curerec.circuits.adapter.adapter_scores` says to first order, measured: one pass a unit, and
    one of the model as it is. Meant for projections; of rows and rank-one terms the cap leaves most out.

    Args:
        model, prompts, answers, units, deltas, batch_size: as for ``adapter_scores``; the weights are edited
            meanwhile and put back as they were.
        most: so many units at most, the largest by the absolute mean of the first-order scores.
        scores: those, where they are at hand, [n, n_units]; None: they are computed.
        objective: ``margin`` (logits, negative where the unit helps) or ``loss`` (nats, positive where it
            does).
        cost: to be filled.

    Raises:
        ModelError: a single prompt does not fit in memory.

    Source: METHOD sections 2 and 3 (the corruption that needs no pair: a branch scaled to 0).
    """
    spent = cost or Cost()
    if scores is None:
        scores = adapter_scores(
            model, prompts, answers, units, deltas, batch_size=batch_size, objective=objective, cost=spent
        )
    index = np.argsort(-np.abs(scores.mean(0)), kind="stable")[:most]
    more = Cost()
    sets: list[list[int]] = [[], *([int(k)] for k in index)]
    runs = values_without(
        model, prompts, answers, units, deltas, sets, batch_size=batch_size, objective=objective, cost=more
    )
    spent.add(more)
    return ExactScores(index, (runs[1:] - runs[0]).T)


def values_without(
    model: Any,
    prompts: Prompts,
    answers: tuple[int, int],
    units: Units,
    deltas: Deltas,
    sets: Sequence[Collection[int]],
    *,
    batch_size: int = 128,
    objective: Objective = "margin",
    cost: Cost | None = None,
) -> Float[np.ndarray, "sets n"]:
    """Margin (logits) or cross-entropy (nats) of each prompt without each set of units' changes.

    Without any unit that is the base model's, but for the rounding of ``W - (W - W_base)``.

    Args:
        model, prompts, answers, units, deltas, batch_size, objective, cost: as for :func:`exact_adapter`.
        sets: indices of units whose change is scaled to 0, [sets]; one pass each.
    """
    spent = cost or Cost()
    if parallel.sharing() and len(prompts):

        def some(mine: np.ndarray) -> np.ndarray:
            return values_without(
                model, prompts.take(mine), answers, units, deltas, sets,
                batch_size=batch_size, objective=objective, cost=spent,
            ).T  # fmt: skip

        rows = parallel.by_rows(len(prompts), some)
        spent.examples, spent.forwards = len(prompts), len(sets) * len(prompts)  # of all processes
        return rows.T
    device = device_of(model)
    label = torch.from_numpy(prompts.label.astype(np.int64)).to(device)
    out = np.zeros((len(sets), len(prompts)), numpy_type(model))

    def work(index: np.ndarray) -> None:
        # Sets inside batches: where memory runs out, what was done already is written.
        ids, last = to_batch(prompts, index, device)
        wanted = label[torch.from_numpy(index).to(device)]
        for k, chosen in enumerate(sets):
            with without(model, units, deltas, chosen), torch.inference_mode():
                logits = answer_logits(model, ids, last, answers, lean=True)
            if objective == "margin":
                value = margin(logits, wanted)
            else:
                value = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
            out[k, index] = value.cpu().numpy()
        spent.forwards += len(sets) * len(index)

    with frozen(model), unmerged(model):
        each_part(model, prompts, batch_size, work, spent)
    return out


@contextmanager
def without(model: Any, units: Units, deltas: Deltas, chosen: Collection[int]) -> Iterator[None]:
    """The model with these units' changes scaled to 0 inside; afterwards its weights are as they were.

    Args:
        model: fine-tuned; adapters not merged.
        units: of the model.
        deltas: from :func:`curerec.circuits.adapter.weight_deltas`; empty with LoRA, where the sliced factor
            is the change.
        chosen: indices of units.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    members = np.asarray(sorted(chosen), np.int64)
    kept: dict[str, tuple[int, torch.Tensor, torch.Tensor]] = {}
    try:
        with torch.no_grad():
            for branch in units.branches:
                inside = np.flatnonzero(np.isin(branch.unit, members))
                if branch.weight in kept or not len(inside):  # tied embeddings appear twice
                    continue
                weight, dim = parameters[branch.weight], branch.dim
                rows = torch.from_numpy(inside).to(weight.device)
                kept[branch.weight] = dim, rows, weight.index_select(dim, rows)
                if branch.factor is None:
                    weight.index_add_(dim, rows, deltas[branch.weight].index_select(dim, rows), alpha=-1)
                else:
                    weight.index_fill_(dim, rows, 0)
        yield
    finally:
        with torch.no_grad():
            for name, (dim, rows, before) in kept.items():
                parameters[name].index_copy_(dim, rows, before)
