"""Runs with a part of the model patched, and what scorers and callers take from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import numpy as np
import torch

from curerec.circuits.activations import layer_of, patching, recording, sites_of
from curerec.circuits.passes import (
    READ_NOTHING,
    Cost,
    PairBatch,
    at_answer,
    each_batch,
    frozen,
    margin,
    numpy_type,
)
from curerec.circuits.scorers import atp as atp_scorer
from curerec.errors import PromptError
from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.layers import beginning_at, outputs_of
from curerec.recommender.lean import can_be_lean
from curerec.recommender.lower import begins_at, states_computed
from curerec.recommender.score import answer_logits, device_of, on


def atp(
    model: Any, clean: Prompts, corrupt: Prompts, answers: tuple[int, int], *, batch_size: int = 64
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Attribution patching: see :func:`curerec.circuits.scorers.atp.score`.

    Returns:
        Scores float32 [n, modules] (logit units, negative where the module supports the answer), and names.
    """
    found = atp_scorer.score(model, clean, corrupt, answers, batch_size=batch_size)
    return found.values, found.names


@torch.inference_mode()
def patched_margins(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    patch_sets: Sequence[set[str]],
    *,
    batch_size: int = 64,
    cost: Cost | None = None,
) -> np.ndarray:
    """Margins with each set of modules replaced by its corrupt activations, in one forward pass a set.

    The passes after the first begin above what no set patches: what the first computed below stays. Where the
    first set is empty, as for ``exact``, each begins at the first layer that it patches itself. Where nothing
    is patched below an adapter, all begin there, above states that are kept.

    Args:
        model, clean, corrupt, answers, batch_size: as for :func:`curerec.circuits.scorers.atp.score`.
        patch_sets: sets of module names, [s].
        cost: to be filled.

    Returns:
        float32 [s, n].
    """
    sites = sites_of(model)
    begins = [min((layer_of(m) for m in modules), default=sites.n_layers - 1) for modules in patch_sets]
    lowest = min(begins, default=0)
    if patch_sets and patch_sets[0]:
        begins = [lowest] * len(begins)
    return margins_with(
        lambda corrupt, modules: patching(sites, corrupt, modules),
        model, clean, corrupt, answers, patch_sets, batch_size=batch_size, cost=cost, lean=True,
        begins=[low if k else 0 for k, low in enumerate(begins)], lowest=lowest,
    )  # fmt: skip


@torch.inference_mode()
def margins_with(
    changed: Callable[[Any, Any], AbstractContextManager[Any]],
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    patch_sets: Sequence[Any],
    *,
    batch_size: int,
    cost: Cost | None = None,
    lean: bool = False,
    begins: Sequence[int] = (),
    lowest: int = 0,
) -> np.ndarray:
    """Margins of the clean prompts, one forward pass for each way of patching in what the corrupt run wrote.

    Args:
        changed: given the corrupt run's activations and one of ``patch_sets``: the model patched inside.
        model, clean, corrupt, answers: as for :func:`patched_margins`.
        patch_sets: whatever ``changed`` understands, [sets].
        batch_size: pairs a pass.
        cost: to be filled.
        lean: ``changed`` touches of the last layer only what its heads and MLP write; it is then computed at
            the answer alone, where it can be.
        begins: the layer that each pass begins at, [sets], 0 for the first, which must change nothing below
            what the others begin at. Empty: every pass is a whole one.
        lowest: below this layer ``changed`` neither reads nor changes anything.

    Returns:
        float32 [sets, n].
    """
    spent, sites = cost or Cost(), sites_of(model)
    layers = sites.family.layer_list(model)
    begins = list(begins) or [0] * len(patch_sets)
    with frozen(model):
        kept = begins_at(model, lowest)
    # A pass that begins higher up is the share of one that is left.
    passes = sum(1 - max(b, kept) / len(layers) for b in (0, *begins))
    known = states_computed()
    if parallel.sharing() and len(clean):

        def some(mine: np.ndarray) -> np.ndarray:
            pairs = clean.take(mine), corrupt.take(mine)
            return margins_with(
                changed, model, *pairs, answers, patch_sets,
                batch_size=batch_size, cost=spent, lean=lean, begins=begins, lowest=lowest,
            ).T  # fmt: skip

        before = spent.forwards
        rows = parallel.by_rows(len(clean), some)
        new = torch.tensor([float(states_computed() - known)]).to(parallel.place())
        parallel.summed([new])
        # Of all processes.
        spent.forwards = before + passes * len(clean) + float(new) * kept / len(layers)
        return rows.T
    lean = lean and sites.n_layers > 1 and can_be_lean(model)
    device = device_of(model)
    # Read once at the end: a GPU is not made to wait for every pass.
    kind = torch.float64 if numpy_type(model) is np.float64 else torch.float32
    out = torch.zeros((len(patch_sets), len(clean)), dtype=kind, device=device)

    def work(batch: PairBatch) -> None:
        at = on(device, batch.index)
        with at_answer(model, batch.last, lean), recording(sites, first=lowest) as corrupt_acts:
            answer_logits(model, batch.corrupt, batch.last, answers)
        below: list[Any] = []
        for k, patch_set in enumerate(patch_sets):
            with ExitStack() as stack:
                stack.enter_context(at_answer(model, batch.last, lean))
                stack.enter_context(changed(corrupt_acts, patch_set))
                if k == 0 and max(begins) > kept:
                    below = stack.enter_context(outputs_of(layers[kept:-1]))
                if begins[k] > kept:  # up to there the pass begins by itself; what lies below is not read
                    stack.enter_context(beginning_at(layers, begins[k], [below[0]] * kept + below))
                logits = answer_logits(model, batch.clean, batch.last, answers)
            out[k].index_copy_(0, at, margin(logits, batch.label).to(out))
        spent.forwards += passes * len(batch.index)

    with frozen(model):
        each_batch(model, clean, corrupt, batch_size, work, spent)
    spent.forwards += (states_computed() - known) * kept / len(layers)
    return parallel.as_first(out.cpu().numpy())


def exact(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    modules: Sequence[str],
    *,
    batch_size: int = 64,
) -> np.ndarray:
    """Activation patching: the change of the margin when one module is patched, one forward pass a module.

    Returns:
        float32 [n, len(modules)].

    Source: METHOD section 3, scorer ``exact``.
    """
    runs = patched_margins(
        model, clean, corrupt, answers, [set(), *({m} for m in modules)], batch_size=batch_size
    )
    return (runs[1:] - runs[0]).T


def moving_pairs(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    keep: int,
    *,
    among: Collection[str] | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """The pairs whose margin falls most when every module is given its corrupt activation, int [<= keep].

    A pair whose margin does not fall says nothing about what carries the answer. At most ``keep`` pairs, in
    their order, and only ones that fall.

    Args:
        model, clean, corrupt, answers, batch_size: as for :func:`patched_margins`.
        keep: pairs.
        among: modules that a circuit will be sought among: those are patched. None: all.

    Raises:
        PromptError: fewer than two pairs' margins fall.

    Source: METHOD section 2 ("keep pairs whose metric moves").
    """
    whole, patched = both_margins(model, clean, corrupt, answers, among=among, batch_size=batch_size)
    return most_falling(whole - patched, keep)


def both_margins(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    among: Collection[str] | None = None,
    batch_size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Margins of the clean run and of the one in which every module is patched: what pairs are chosen by.

    Args:
        model, clean, corrupt, answers, among, batch_size: as for :func:`moving_pairs`.

    Returns:
        float32 [n] each.
    """
    names = set(sites_of(model).names if among is None else among)
    whole, patched = patched_margins(model, clean, corrupt, answers, [set(), names], batch_size=batch_size)
    return whole, patched


def most_falling(fall: np.ndarray, keep: int) -> np.ndarray:
    """The at most ``keep`` pairs that fall most, int [<= keep], in their order; see :func:`moving_pairs`.

    Args:
        fall: of each pair's margin, logits, [n].
        keep: pairs; of one alone no circuit can be found, since half of the pairs ranks and half judges.

    Raises:
        PromptError: fewer than two fall, however many are kept.
    """
    fell = int((fall > 0).sum())
    if fell < 2:
        raise PromptError(
            f"{fell or 'none'} of {len(fall)} corrupted prompts lowers the margin, and two must",
            where="counterfactuals",
            mend=READ_NOTHING,
        )
    best = np.argsort(-fall, kind="stable")[:keep]
    return np.sort(best[fall[best] > 0])
