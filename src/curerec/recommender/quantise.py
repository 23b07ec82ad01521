"""A frozen base in 8 or 4 bits under an adapter (QLoRA)."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from curerec.errors import ModelError
from curerec.recommender.families import family_of


def quantise(model: Any, bits: int, device: torch.device | str = "cpu") -> Any:
    """The decoder's projections in 8 or 4 bits, in place; embedding, norms and head stay as they are.

    4 bits are nf4 with quantised scales, 8 bits LLM.int8. Each projection is packed as it arrives on the
    device: the whole model never is on a small card. There it has to stay, since a model that is moved leaves
    the scales of 8 bits behind.

    Args:
        model: plain, of a known family, checked, on the CPU; not yet wrapped by PEFT.
        bits: 4, 8, or 16 for nothing but the move.
        device: where to put the model.

    Returns:
        The same model on the device, all parameters frozen where it was quantised.

    Raises:
        ModelError: bitsandbytes is not installed, or the family keeps its weights transposed (GPT-2).

    Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314; Dettmers et al. 2022 (LLM.int8), arXiv 2208.07339.
    """
    if bits == 16:
        return model.to(device)
    family = family_of(model)
    if family.transposed:
        mend = "Set model.base_bits to 16"
        raise ModelError("is not offered for this family", where=f"base in {bits} bits", mend=mend)
    if importlib.util.find_spec("bitsandbytes") is None:
        mend = "In a clone: pip install -e '.[quant]'. Or set model.base_bits to 16"
        raise ModelError("needs the package bitsandbytes", where=f"base in {bits} bits", mend=mend)
    import bitsandbytes as bnb

    dtype = next(model.parameters()).dtype
    model.requires_grad_(False)
    for layer in family.layer_list(model):
        for projection in family.projections.values():
            old = layer.get_submodule(projection.path)
            sizes = (old.in_features, old.out_features, old.bias is not None)
            if bits == 4:
                new = bnb.nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4", device="meta")
                # On a CPU it would repack its weights once it answers, and have no gradient from then on.
                new.support_avx512bf16_for_cpu = False
                new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
                new.weight = bnb.nn.Int8Params(old.weight.data, requires_grad=False, has_fp16_weights=False)
            new.bias = old.bias
            parent, _, name = projection.path.rpartition(".")
            setattr(layer.get_submodule(parent), name, new.to(device))
    setattr(model, f"is_loaded_in_{bits}bit", True)  # by this PEFT knows which branches to make
    return model.to(device)


def held_bytes(model: Any) -> int:
    """Memory of a model's parameters, bytes."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.device != torch.device("meta"))
