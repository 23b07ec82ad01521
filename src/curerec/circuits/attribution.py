"""Gradient-based node scores: activation difference times gradient, at one or several points."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from curerec.circuits.activations import (
    Activations,
    Sites,
    layer_of,
    patching,
    recording,
    site_of,
    sites_of,
)
from curerec.circuits.passes import (
    Cost,
    PairBatch,
    Scores,
    at_answer,
    each_batch,
    frozen,
    margin,
    numpy_type,
)
from curerec.prompts.encoding import Prompts
from curerec.recommender.lean import can_be_lean
from curerec.recommender.lower import begins_at, kept_below, states_computed
from curerec.recommender.score import answer_logits, wide

Context = Callable[[Any], AbstractContextManager[None]]


def attribute(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    scorer: str,
    alphas: Sequence[float] = (1.0,),
    context: Context = lambda model: nullcontext(),
    patched: Collection[str] = (),
    among: Collection[str] | None = None,
    batch_size: int = 64,
) -> Scores:
    """``score_i = sum over positions and features of (a_i(x') - a_i(x)) * mean over alphas of dm/da_i``.

    The gradient is taken at the embeddings ``e(x') + alpha (e(x) - e(x'))``. Each product is formed the
    moment its gradient exists, so beside the forward pass only the differences are held: L x B x T x
    (H d_head + d_model) values. The last layer's are of the answer position alone, where it can be cut.

    Args:
        model: decoder of a known family.
        clean: [n] prompts.
        corrupt: [n] prompts of the same lengths.
        answers: token ids of (no, yes).
        scorer: name for the record.
        alphas: points between the corrupt (0) and the clean (1) embeddings.
        context: entered around the runs whose gradient is taken (``relp`` changes the backward pass there).
        patched: modules that have their corrupt activation throughout: scores are then what patching one
            more would do, and theirs are 0. Only with the one point alpha = 1.
        among: modules to score; None: all, and the embedding output. Where none of them lies below an adapter
            and the gradient is taken at the clean prompt itself, passes begin above states that are kept.
        batch_size: pairs a pass.

    Returns:
        Scores of heads and MLPs, and of the embedding output.

    Raises:
        PromptError: pairs are missing or do not align.
    """
    sites = sites_of(model)
    kind = numpy_type(model)
    values = np.zeros((len(clean), len(sites.names)), kind)
    embedding = np.zeros(len(clean), kind)
    cost = Cost()
    lean = sites.n_layers > 1 and can_be_lean(model)
    given = set(patched)
    once = tuple(alphas) == (1.0,)  # the pass whose gradient is taken is the clean one itself
    assert not given or once
    lowest = 0 if among is None or not once or given else min(map(layer_of, among))
    with frozen(model), context(model):  # which may listen below
        first = begins_at(model, lowest)
    known = states_computed()

    def work(batch: PairBatch) -> None:
        if once:
            with torch.no_grad(), at_answer(model, batch.last, lean), recording(sites, first=first) as deltas:
                answer_logits(model, batch.corrupt, batch.last, answers)
        else:
            deltas = differences(model, sites, batch, answers, lean=lean)
        held = {site_of(m): deltas[site_of(m)] for m in given}  # the tap turns these into differences
        column = {name: k for k, name in enumerate(sites.names)}
        total = torch.zeros(
            len(batch.index),
            len(sites.names) + 1,
            dtype=torch.promote_types(next(iter(deltas.values())).dtype, torch.float32),
            device=batch.clean.device,
        )

        def take(name: str) -> Any:
            def hook(grad: torch.Tensor) -> None:
                product = wide(deltas[name]) * wide(grad)
                if name == "input":
                    total[:, -1] += product.sum((1, 2))
                elif name.endswith(".mlp"):
                    total[:, column[name]] += product.sum((1, 2))
                else:
                    at = column[name.replace(".attn", ".head.0")]
                    total[:, at : at + sites.n_heads] += sites.per_head(product).sum((1, 3))

            return hook

        for alpha in alphas:
            handles: list[Any] = []

            def tap(name: str, a: torch.Tensor, handles: list[Any] = handles) -> None:
                if once:
                    deltas[name] = deltas[name] - a.detach()
                if a.requires_grad:  # what a patched MLP writes is a constant
                    handles.append(a.register_hook(take(name)))  # the tensor itself is not held

            with (
                context(model),
                kept_below(model, batch.clean, batch.last, leaf=True) if first else nullcontext() as states,
                at_answer(model, batch.last, lean),
                patching(sites, held, given),  # before the tap
                recording(sites, into=tap, first=first),
            ):
                leaf = between(model, batch, alpha) if states is None else states
                embeds = leaf if states is None else None
                logits = answer_logits(model, batch.clean, batch.last, answers, inputs_embeds=embeds)
                torch.autograd.grad(margin(logits, batch.label).sum(), leaf)
            for handle in handles:
                handle.remove()
        out = (total / len(alphas)).cpu().numpy()
        values[batch.index], embedding[batch.index] = out[:, :-1], out[:, -1]
        share = (1 - first / sites.n_layers) * len(batch.index)
        cost.forwards += share * (1 + len(alphas) + (not once))
        cost.backwards += share * len(alphas)

    with frozen(model):
        each_batch(model, clean, corrupt, batch_size, work, cost)
    cost.forwards += (states_computed() - known) * first / sites.n_layers
    if among is None:
        return Scores(sites.names, values, embedding, scorer, cost)
    return Scores(sites.names, values, None, scorer, cost).among(among)


def between(model: Any, batch: PairBatch, alpha: float) -> torch.Tensor:
    """Embeddings ``e(x') + alpha (e(x) - e(x'))`` as a gradient leaf, [batch, pos, d_model]."""
    embed = model.get_input_embeddings()
    e = embed(batch.clean)
    if alpha != 1.0:
        other = embed(batch.corrupt)
        e = other + alpha * (e - other)
    return e.detach().requires_grad_()


@torch.no_grad()
def differences(
    model: Any, sites: Sites, batch: PairBatch, answers: tuple[int, int], *, lean: bool = False
) -> Activations:
    """a(x') - a(x) at every site, by two forward passes; ``lean`` as for :func:`at_answer`."""
    with at_answer(model, batch.last, lean), recording(sites) as bad:
        answer_logits(model, batch.corrupt, batch.last, answers)
    deltas = dict(bad)

    def subtract(name: str, a: torch.Tensor) -> None:
        deltas[name] = deltas[name] - a

    with at_answer(model, batch.last, lean), recording(sites, into=subtract):
        answer_logits(model, batch.clean, batch.last, answers)
    return deltas
