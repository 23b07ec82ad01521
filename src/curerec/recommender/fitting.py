"""How many prompts a pass takes at a time, so that what it keeps fits; how long they may be."""

from __future__ import annotations

import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import torch

from curerec.recommender import parallel
from curerec.recommender.copies import LORA
from curerec.recommender.families import family_of
from curerec.recommender.runtime import RuntimeConfig

#: Bytes that a pass keeps of each feature that enters or leaves a linear map of a layer, for each token.
#: Counted (:class:`curerec.recommender.alive.LivePeak`) with LoRA on every map of a base in bfloat16: 2.4 at
#: LLaMA-2-7B's shape, 4.5 at GPT-2 Large's, which has dropout and keeps its attention's scores besides.
FEATURE_BYTES = 4
SCORE_BYTES = 12  # of each head, for each pair of tokens
STATE_BYTES = 4  # of each feature that enters a layer, where only that is kept
#: Of the memory that the weights leave, for what a pass keeps; the other half is for all else.
SHARE = 0.5

_beside = 1  # processes that do such work on this device, this one included

_sizes: weakref.WeakKeyDictionary[Any, tuple[list[int], int, int]] = weakref.WeakKeyDictionary()


def share_memory(processes: int) -> None:
    """Leave room for other processes of a run that pass as large batches on the same device at a time."""
    global _beside
    _beside = max(1, processes)


def prompts_that_fit(model: Any, pos: int, runtime: RuntimeConfig | None = None) -> int:
    """Prompts of a length that a pass with gradients may take at a time.

    Reckoned from the whole memory of the machine or the GPU and not from what is free of it at the moment, so
    that the same machine always cuts a batch into the same parts: a sum in other parts rounds otherwise.

    Args:
        model: decoder, plain or PEFT-wrapped; its layers below the lowest that can change keep nothing.
        pos: tokens of the longest prompt, padding included.
        runtime: what the pass keeps, and where; None: everything, on the model's device.

    Returns:
        At least 1. Where several processes were started together there is no bound, since all must make the
        same passes and their parts of a model may differ: choose smaller batches there.
    """
    if parallel.count() > 1:
        return 1 << 30
    device, room = next(model.parameters()).device, _room(model)
    if runtime and device.type == "cuda":  # elsewhere it would be the same memory
        room += runtime.offload_bytes
    return max(1, room // bytes_a_prompt(model, pos, checkpoint=bool(runtime and runtime.checkpoint)))


def prompts_that_share(model: Any, pos: int) -> int:
    """Prompts of a length whose keys and values may be held at a time, where passes hand them on.

    Reckoned as for :func:`prompts_that_fit`.

    Args:
        model: of a known family, plain or PEFT-wrapped.
        pos: tokens of the longest prompt.

    Returns:
        At least 1; no bound where all processes must make the same passes.
    """
    if parallel.in_step():
        return 1 << 30
    _, heads, width = family_of(model).heads(model)
    number = model.get_input_embeddings().weight.element_size()
    return max(1, _room(model) // max(1, pos * len(_layers(model)) * 2 * heads * width * number))


def positions_of(model: Any) -> int | None:
    """Positions that a model has; None: it names no end.

    Where a model turns positions by other frequencies from some length on (``longrope``), that is its end:
    the frequencies are chosen for a batch, so a prompt's answer would depend on those beside it.

    Args:
        model: plain or PEFT-wrapped.
    """
    room = getattr(model.config, "max_position_embeddings", None)
    rotation = getattr(model.config, "rope_parameters", None) or {}
    if rotation.get("rope_type") == "longrope":
        room = rotation.get("original_max_position_embeddings") or room
    return room or None


def bytes_a_prompt(model: Any, pos: int, *, checkpoint: bool = False) -> int:
    """What a pass with gradients keeps of a prompt for the way back, rather too much than too little.

    Args:
        model, pos: as for :func:`prompts_that_fit`.
        checkpoint: of each layer only what enters it is kept, and all of the one that is passed anew.
    """
    features, heads, _ = _sizes_of(model)
    first = next((k for k, layer in enumerate(_layers(model)) if _can_change(layer)), 0)
    scores = SCORE_BYTES * heads * pos if keeps_scores(model) else 0
    a_layer = [FEATURE_BYTES * size + scores for size in features[first:]]
    kept = sum(a_layer)
    if checkpoint:
        width = int(model.get_input_embeddings().weight.shape[-1])
        kept = min(kept, STATE_BYTES * width * len(a_layer) + max(a_layer))
    return max(1, pos * kept)


def keeps_scores(model: Any) -> bool:
    """Whether attention keeps its scores for the way back; fused kernels on a GPU compute them anew."""
    device = next(model.parameters()).device
    return device.type != "cuda" or model.config._attn_implementation == "eager"


@cache
def memory_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of this machine as far as the process may use it (a container's limit), bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return 1 << 62
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found


def _room(model: Any) -> int:
    """Bytes beside the weights that passes may take for what they keep."""
    device = next(model.parameters()).device
    return int(SHARE * max(0, memory_bytes(device) // _beside - _sizes_of(model)[2]))


def _sizes_of(model: Any) -> tuple[list[int], int, int]:
    """Features in and out of the linear maps of each layer; heads; bytes of all weights."""
    if model not in _sizes:
        features = [sum(_features(*m) for m in layer.named_modules()) for layer in _layers(model)]
        weights = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in model.parameters()}
        _sizes[model] = features, family_of(model).heads(model)[0], sum(weights.values())
    return _sizes[model]


def _layers(model: Any) -> list[Any]:
    return family_of(model).layer_list(model)


def _can_change(layer: Any) -> bool:
    return any(p.requires_grad for p in layer.parameters())


def _features(name: str, module: Any) -> int:
    """In and out of a linear map; 0 of any other module, of an adapter's factors and of what wraps a map."""
    if LORA in name or hasattr(module, "base_layer"):
        return 0
    if hasattr(module, "in_features"):  # also where the weights lie packed in few bits
        return int(module.in_features + module.out_features)
    return sum(module.weight.shape) if type(module).__name__ == "Conv1D" else 0
