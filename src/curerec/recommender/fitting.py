"""How many prompts a pass with gradients takes at a time, so that what it keeps for the way back fits."""

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
    device = next(model.parameters()).device
    room = int(SHARE * max(0, memory_bytes(device) // _beside - _sizes_of(model)[2]))
    if runtime and device.type == "cuda":  # elsewhere it would be the same memory
        room += runtime.offload_bytes
    return max(1, room // bytes_a_prompt(model, pos, checkpoint=bool(runtime and runtime.checkpoint)))


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
