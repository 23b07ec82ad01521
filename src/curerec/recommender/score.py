"""Reading the two answers off a model: the only forward pass of the package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from scipy.special import expit
from torch.utils.checkpoint import checkpoint

from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.fitting import prompts_that_fit, prompts_that_share
from curerec.recommender.folding import folded
from curerec.recommender.fused import fused_activations
from curerec.recommender.lean import answer_only, can_be_lean
from curerec.recommender.lookup import looked_up
from curerec.recommender.lower import kept_below, lowest_updated
from curerec.recommender.memory import keep_freed
from curerec.recommender.runtime import RuntimeConfig, kept_few
from curerec.recommender.shared import can_share, last_states, packed, runs

BATCH = 256  # prompts that are scored at a time
CPU_TOKENS = 8192  # at most, for each thread of the CPU: an activation of so many rows still fits its cache


def answer_logits(
    model: Any,
    ids: Int[torch.Tensor, "batch pos"],
    last: Int[torch.Tensor, " batch"],
    answers: tuple[int, int],
    *,
    inputs_embeds: Float[torch.Tensor, "batch pos width"] | None = None,
    mask: Int[torch.Tensor, "batch pos"] | Bool[torch.Tensor, "batch pos"] | None = None,
    lean: bool = False,
    cut: bool = True,
    runtime: RuntimeConfig | None = None,
) -> Float[torch.Tensor, "batch 2"]:
    """Logits of " No" and " Yes" at the answer position.

    Only the two answer rows of the output embedding are read, at one position: the product with the whole
    vocabulary, often the largest activation of a forward pass, is never formed.

    Args:
        model: Hugging Face decoder, plain or PEFT-wrapped.
        ids: int64 [batch, pos], right-padded unless there is a mask.
        last: int64 [batch], answer positions.
        answers: token ids of (no, yes).
        inputs_embeds: [batch, pos, d_model] in place of the ids' embeddings.
        mask: bool or int [batch, pos], 0 at padding; needed with padding on the left, which later tokens
            would see. Positions are counted from each row's first token.
        lean: compute of the last layer only what the answer needs, where that gives the same numbers
            (:mod:`curerec.recommender.lean`); who listens to its other positions must not ask for it.
        cut: where ``lean``, a batch of which too much would have to be kept for the way back
            (:mod:`curerec.recommender.fitting`) is passed in parts, and each part once more on the way back.
            Who can add up gradients part by part does so, which costs nothing, and says False.
        runtime: what a pass with gradients keeps of a model in eval mode, and where; None: everything, here.
            Of a batch that is cut nothing is offloaded.

    Returns:
        float32 [batch, 2]; float64 of a model in float64.
    """
    if hasattr(model, "answer_logits"):  # several models that answer together
        return model.answer_logits(ids, last, answers)
    if lean and cut and torch.is_grad_enabled() and (few := _fewer(model, ids, runtime)):
        parts = [slice(k, k + few) for k in range(0, len(ids), few)]
        of = [(ids[k], last[k], _part(inputs_embeds, k), _part(mask, k)) for k in parts]
        return torch.cat([_twice(model, *part, answers, runtime) for part in of])
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {"input_ids": ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    if mask is not None:
        inputs["attention_mask"] = mask.long()
        inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    below = kept_below(model, ids, last) if inputs_embeds is None and mask is None else nullcontext()
    lean = lean and can_be_lean(model)
    with below, kept_few(model, runtime), answer_only(model, last) if lean else nullcontext():
        hidden = base.get_decoder()(**inputs, use_cache=False).last_hidden_state
    rows = torch.arange(len(last), device=last.device)
    return read_out(base, hidden[rows, last], answers)


def _fewer(model: Any, ids: torch.Tensor, runtime: RuntimeConfig | None) -> int:
    """Prompts of a batch at a time where not all of them fit; 0 where they do."""
    if len(ids) == 1 or prompts_that_fit(model, ids.shape[1], runtime) >= len(ids):
        return 0
    return prompts_that_fit(model, ids.shape[1], _all_here(runtime))


def _all_here(runtime: RuntimeConfig | None) -> RuntimeConfig | None:
    """The same, offloading nothing.

    Of what is passed twice there is nothing to offload, and hooks inside a checkpoint see to it that all of
    it is kept: torch asks the innermost what to do with a tensor.
    """
    return runtime.model_copy(update={"offload_bytes": 0}) if runtime else None


def _part(given: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
    return None if given is None else given[rows]


def _twice(
    model: Any,
    ids: torch.Tensor,
    last: torch.Tensor,
    inputs_embeds: torch.Tensor | None,
    mask: torch.Tensor | None,
    answers: tuple[int, int],
    runtime: RuntimeConfig | None,
) -> Float[torch.Tensor, "batch 2"]:
    """Answer logits of which nothing is kept: the way back computes the pass anew."""
    more: dict[str, Any] = {"lean": True, "cut": False, "runtime": _all_here(runtime)}

    def run(ids: Any, last: Any, embeds: Any, mask: Any) -> torch.Tensor:
        return answer_logits(model, ids, last, answers, inputs_embeds=embeds, mask=mask, **more)

    # As arguments: dropout is drawn again on the way back, on the devices of the arguments.
    found: torch.Tensor = checkpoint(run, ids, last, inputs_embeds, mask, use_reentrant=False)
    return found


def read_out(
    base: Any, state: Float[torch.Tensor, "batch width"], answers: tuple[int, int]
) -> Float[torch.Tensor, "batch 2"]:
    """The two answer logits of final states, float32 [batch, 2]; float64 of a model in float64."""
    head = base.get_output_embeddings()
    rows = _rows(answers, head.weight.device)
    logits = wide(state) @ wide(head.weight.index_select(0, rows)).T
    if getattr(head, "bias", None) is not None:
        logits = logits + wide(head.bias.index_select(0, rows))
    cap = getattr(base.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


@lru_cache(maxsize=8)
def _rows(answers: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Token ids of (no, yes) on a device: indexing by a list would copy it there in every pass, and wait."""
    with torch.inference_mode(False):  # else no later pass could keep them for its way back
        return torch.tensor(answers, device=device)


def wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32: products and sums of scores are never taken in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def device_of(model: Any) -> torch.device:
    """Device of a model's parameters."""
    return next(model.parameters()).device


def label_nll(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of the true answers, nats, float64 [n]; does not overflow.

    Args:
        logits: of (no, yes), [n, 2]; or margins, [n].
        label: 1 is yes, [n].

    Example:
        >>> label_nll(np.array([[0.0, 0.0], [0.0, 800.0]]), np.array([1, 0])).round(3).tolist()
        [0.693, 800.0]
    """
    z = np.asarray(logits, np.float64)
    z = z if z.ndim == 1 else z[:, 1] - z[:, 0]
    return np.asarray(np.logaddexp(0.0, np.where(label == 1, -z, z)))


def to_batch(
    prompts: Prompts,
    index: np.ndarray,
    device: torch.device,
    *,
    multiple: int = 1,
    most: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [batch, pos] and answer positions [batch] on a device.

    To a GPU they are copied from pinned memory while it computes; nobody waits.

    Args:
        prompts: to take from.
        index: which of them.
        device: where to.
        multiple: pad to a multiple of so many positions, so that shapes are few.
        most: positions to pad to at most; None: any number.
    """
    ids, last = prompts.padded(index)
    short = -ids.shape[1] % multiple
    if most is not None:
        short = min(short, max(0, most - ids.shape[1]))
    if short:
        ids = np.pad(ids, ((0, 0), (0, short)))
    return on(device, ids), on(device, last)


def on(device: torch.device, x: np.ndarray) -> torch.Tensor:
    """An array on a device, without waiting for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def by_length(prompts: Prompts, batch_size: int) -> Iterator[np.ndarray]:
    """Index batches of prompts of like length, longest first (an out-of-memory shows at once)."""
    order = np.argsort(-prompts.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def at_a_time(
    prompts: Prompts,
    batch_size: int,
    device: torch.device,
    model: Any = None,
    runtime: RuntimeConfig | None = None,
) -> int:
    """Prompts a pass: on the CPU no more than keep activations in its cache.

    Args:
        prompts: [n].
        batch_size: at most.
        device: of the model.
        model: for a pass with gradients, which must fit in memory; None for one without.
        runtime: what such a pass keeps, and where.
    """
    longest = max(1, int(prompts.lengths.max(initial=1)))
    if model is not None:
        batch_size = min(batch_size, prompts_that_fit(model, longest, runtime))
    if device.type != "cpu":
        return batch_size
    return min(batch_size, max(1, CPU_TOKENS * torch.get_num_threads() // longest))


@torch.inference_mode()
def score(
    model: Any, prompts: Prompts, answers: tuple[int, int], *, batch_size: int | None = None
) -> Float32[np.ndarray, "n 2"]:
    """Answer logits of all prompts, in their order.

    Neighbouring prompts that begin alike, such as the candidates of one list, share the passes over their
    common part (:mod:`curerec.recommender.shared`). Several processes share the prompts out
    (:func:`curerec.recommender.parallel.together`).

    Args:
        model: Hugging Face decoder, plain or PEFT-wrapped.
        prompts: [n].
        answers: token ids of (no, yes).
        batch_size: prompts a pass; None: 256, on the CPU so many that activations stay in its cache. Of those
            that share passes no more than have room for their keys and values.

    Returns:
        float32 [n, 2], columns (no, yes).
    """
    if parallel.sharing() and len(prompts):
        return parallel.by_rows(
            len(prompts), lambda mine: score(model, prompts.take(mine), answers, batch_size=batch_size)
        )
    training = model.training
    model.eval()
    device = device_of(model)
    batch_size = batch_size or BATCH
    fewer = at_a_time(prompts, batch_size, device)
    if device.type == "cpu":
        keep_freed()
    order, found = [np.zeros(0, np.int64)], [torch.zeros(0, 2)]
    # Where the lower layers' states are kept, their first layer is hardly run.
    table = nullcontext() if lowest_updated(model) else looked_up(model, prompts)
    try:
        with folded(model), fused_activations(model), table:
            alone = np.ones(len(prompts), bool)
            alike = runs(prompts) if can_share(model) else []
            together = min(batch_size, prompts_that_share(model, int(prompts.lengths.max()))) if alike else 0
            for batch in packed(alike, together):
                index = np.concatenate([np.arange(run.start, run.end) for run in batch])
                alone[index] = False
                order.append(index)
                base = model.get_base_model() if hasattr(model, "get_base_model") else model
                found.append(read_out(base, last_states(base, prompts, batch, device), answers))
            left = np.flatnonzero(alone)
            rest = prompts if alone.all() else prompts.take(left)
            for index in by_length(rest, fewer):
                ids, last = to_batch(rest, index, device)
                order.append(left[index])
                found.append(answer_logits(model, ids, last, answers, lean=True))
        out = np.zeros((len(prompts), 2), np.float32)
        # Read once at the end: a GPU is not made to wait for every batch.
        out[np.concatenate(order)] = torch.cat([x.to(found[-1]) for x in found]).cpu().numpy()
    finally:
        model.train(training)
    return out


def p_yes(logits: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, " n"]:
    """Probability of " Yes" among the two answers, float64 [n]."""
    return expit(logits[:, 1].astype(np.float64) - logits[:, 0])
