"""Copies of a model to change: with an adapter, the frozen weights under it are held once."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from curerec.recommender.spread import is_spread

LORA = "lora_"


def copied(model: Any, *, whole: bool = False) -> Any:
    """A copy whose trained part may be changed.

    With a LoRA adapter that is the adapter: a base of billions of weights is held once, however many copies
    a request needs. Moving a copy to another device or precision moves what is shared. Without an adapter, or
    with one merged into the weights, everything is copied.

    Args:
        model: left as it is.
        whole: also copy frozen weights, for who edits them.
    """
    return copy.deepcopy(model, None if whole else _held_once(model))


def _held_once(model: Any) -> dict[int, Any]:
    """What a deep copy is to take as it is: the frozen parameters under an adapter, by identity.

    Some modules are taken whole, since their parameters alone do not answer: those whose weights are cut into
    parts, and those that hold theirs in 8 bits.
    """
    if not hasattr(model, "peft_config") or any(getattr(m, "merged", False) for m in model.modules()):
        return {}
    return {
        id(p): p
        for name, p in model.named_parameters(remove_duplicate=False)
        if LORA not in name and not p.requires_grad
    } | {id(m): m for m in model.modules() if is_spread(m) or _in_eight_bits(m)}


def _in_eight_bits(module: Any) -> bool:
    """Whether bitsandbytes made it: on its first pass it takes codes and scales away from its parameter.

    A copy with the same parameter and a state of its own would find none. PEFT's wrapper of the same name is
    not meant.
    """
    package = sys.modules.get("bitsandbytes.nn")  # not imported: where nobody has, there is no such module
    return package is not None and isinstance(module, package.Linear8bitLt)


def base_of(model: Any, otherwise: Callable[[], Any]) -> Any:
    """What a model was fine-tuned from, as a model that answers.

    Args:
        model: the fine-tuned one; left as it is.
        otherwise: loads the base where fine-tuning changed the weights themselves.

    Returns:
        Under a LoRA adapter a copy that shares the frozen weights and whose branches write nothing.
    """
    frozen = _held_once(model)
    if not frozen:
        return otherwise()
    base = copy.deepcopy(model, frozen)
    for name, p in base.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            p.data.zero_()
    return base.eval()


def free_tuned(model: Any) -> None:
    """Make trainable what fine-tuning trains: the adapter's parameters, or all of a plain model."""
    adapter = hasattr(model, "peft_config")
    for name, p in model.named_parameters():
        p.requires_grad_(LORA in name if adapter else True)
