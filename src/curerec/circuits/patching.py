"""Scorers ``atp`` and ``exact``, and runs with a part of the model patched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int

from curerec.circuits.activations import patching, recording, sites_of
from curerec.errors import PromptError
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import answer_logits, by_length, device_of, to_batch


def margin(
    logits: Float[torch.Tensor, "batch 2"], label: Int[torch.Tensor, " batch"]
) -> Float[torch.Tensor, " batch"]:
    """m(e) = (2y - 1)(z_yes - z_no), [batch]."""
    return (2 * label - 1) * (logits[:, 1] - logits[:, 0])


def check_aligned(clean: Prompts, corrupt: Prompts) -> None:
    """Refuse pairs whose positions do not align.

    Raises:
        PromptError: no pairs, or a pair of unequal lengths.
    """
    if len(clean) == 0 or len(clean) != len(corrupt):
        raise PromptError(
            "the list of pairs is empty or uneven", where="circuit", mend="Pass n clean, n corrupt"
        )
    if not np.array_equal(clean.lengths, corrupt.lengths):
        first = int(np.flatnonzero(clean.lengths != corrupt.lengths)[0])
        raise PromptError(
            f"pair {first + 1} has {clean.lengths[first]} clean and {corrupt.lengths[first]} corrupt tokens",
            where="circuit",
            mend="Use replacements with the same number of tokens",
        )


def _pair_batches(
    model: Any, clean: Prompts, corrupt: Prompts, batch_size: int
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    check_aligned(clean, corrupt)
    device = device_of(model)
    for index in by_length(clean, batch_size):
        ids, last = to_batch(clean, index, device)
        other, _ = to_batch(corrupt, index, device)
        label = torch.from_numpy(clean.label[index].astype(np.int64)).to(device)
        yield index, ids, other, last, label


def atp(
    model: Any, clean: Prompts, corrupt: Prompts, answers: tuple[int, int], *, batch_size: int = 64
) -> tuple[Float32[np.ndarray, "n modules"], tuple[str, ...]]:
    """Attribution patching: first-order effect on the margin of giving each module its corrupt activation.

    ``score_i = sum over positions and features of (a_i(x') - a_i(x)) * dm/da_i at x``; two forward passes and
    one backward pass for all modules. Heads are slices of the output projection's input, so no
    [batch, pos, head, d_model] tensor is built and grouped keys need no ungrouping.

    Args:
        model: decoder of a known family, in eval mode.
        clean: [n] prompts.
        corrupt: [n] prompts of the same lengths.
        answers: token ids of (no, yes).
        batch_size: pairs a pass.

    Returns:
        Scores float32 [n, modules] (logit units, negative where the module supports the answer), and names.

    Raises:
        PromptError: pairs are missing or do not align.

    Source: Nanda 2023, attribution patching; METHOD section 3.
    """
    sites = sites_of(model)
    out = np.zeros((len(clean), len(sites.names)), np.float32)
    column = {name: k for k, name in enumerate(sites.names)}
    for index, ids, other, last, label in _pair_batches(model, clean, corrupt, batch_size):
        with torch.no_grad(), recording(sites) as corrupt_acts:
            answer_logits(model, other, last, answers)
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        with recording(sites) as acts:
            m = margin(answer_logits(model, ids, last, answers, inputs_embeds=embeds), label)
        names = list(acts)
        grads = dict(zip(names, torch.autograd.grad(m.sum(), [acts[n] for n in names]), strict=True))
        for layer in range(sites.n_layers):
            name = f"layers.{layer}.attn"
            product = ((corrupt_acts[name] - acts[name]).float() * grads[name].float()).detach()
            heads = sites.per_head(product).sum((1, 3))
            first = column[f"layers.{layer}.head.0"]
            out[index, first : first + sites.n_heads] = heads.cpu().numpy()
            name = f"layers.{layer}.mlp"
            product = ((corrupt_acts[name] - acts[name]).float() * grads[name].float()).detach()
            out[index, column[name]] = product.sum((1, 2)).cpu().numpy()
    return out, sites.names


@torch.inference_mode()
def patched_margins(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    patch_sets: Sequence[set[str]],
    *,
    batch_size: int = 64,
) -> Float32[np.ndarray, "sets n"]:
    """Margins with each set of modules replaced by its corrupt activations, in one forward pass a set.

    Args:
        model, clean, corrupt, answers, batch_size: as for :func:`atp`.
        patch_sets: sets of module names, [s].

    Returns:
        float32 [s, n].
    """
    sites = sites_of(model)
    out = np.zeros((len(patch_sets), len(clean)), np.float32)
    for index, ids, other, last, label in _pair_batches(model, clean, corrupt, batch_size):
        with recording(sites) as corrupt_acts:
            answer_logits(model, other, last, answers)
        for k, modules in enumerate(patch_sets):
            with patching(sites, corrupt_acts, modules):
                out[k, index] = margin(answer_logits(model, ids, last, answers), label).cpu().numpy()
    return out


def exact(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    modules: Sequence[str],
    *,
    batch_size: int = 64,
) -> Float32[np.ndarray, "n modules"]:
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
    model: Any, clean: Prompts, corrupt: Prompts, answers: tuple[int, int], keep: int, *, batch_size: int = 64
) -> Int[np.ndarray, " kept"]:
    """The pairs whose margin falls most when the prompt is corrupted, int [<= keep], in their order.

    A pair whose margin does not fall says nothing about what carries the answer. At most ``keep`` pairs, and
    only ones that fall.

    Raises:
        PromptError: no pair's margin falls.

    Source: METHOD section 2 ("keep pairs whose metric moves").
    """
    names = set(sites_of(model).names)
    whole, corrupted = patched_margins(model, clean, corrupt, answers, [set(), names], batch_size=batch_size)
    fall = whole - corrupted
    best = np.argsort(-fall, kind="stable")[:keep]
    best = np.sort(best[fall[best] > 0])
    if len(best) < 2:
        raise PromptError(
            "no corrupted prompt lowers the margin",
            where="counterfactuals",
            mend="The model does not read the history; use more pairs or another recommender",
        )
    return best
