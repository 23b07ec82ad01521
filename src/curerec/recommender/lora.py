"""Adapters as factors: reading the branches of a LoRA adapter, and making one of given factors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from curerec.errors import ModelError
from curerec.recommender.copies import copied
from curerec.recommender.families import family_of

PREFIX = "base_model.model."
#: Path of a linear map in the plain model -> (A [rank, in], B [out, rank]); the branch adds B A.
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


def targets(model: Any, names: Iterable[str] | None = None, layers: int | None = None) -> list[str]:
    """Modules that branches go on, as PEFT's ``target_modules``: paths and not last names, of which GPT-2 has
    one twice.

    Args:
        model: plain, of a known family.
        names: of its family's projections; None: all.
        layers: only the last so many; None: all.
    """
    family = family_of(model)
    n = len(family.layer_list(model))
    within = [""] if layers is None else [f"{family.layers}.{k}." for k in range(n - layers, n)]
    return [where + family.projections[name].path for where in within for name in names or family.projections]


def factors_of(model: Any) -> Factors:
    """The branches of a PEFT model's active LoRA adapter, B with the adapter's scaling in it.

    Raises:
        ModelError: the adapter adds more than ``scaling B A`` (DoRA, biases), which factors cannot hold.
    """
    name = model.active_adapter
    config = model.peft_config[name]
    if getattr(config, "use_dora", False) or getattr(config, "bias", "none") != "none":
        raise ModelError(
            "is no plain LoRA adapter", where="adapter", mend="Train it without use_dora and bias"
        )
    out: Factors = {}
    for path, module in model.named_modules():
        if hasattr(module, "lora_B") and name in module.lora_B:
            a, b = module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach()
            out[path.removeprefix(PREFIX)] = (a.clone(), b * module.scaling[name])
    return out


def stacked(*parts: tuple[float, Factors]) -> Factors:
    """Factors whose products are ``sum_k weight_k B_k A_k``, exactly: ranks are joined, nothing is cut.

    A branch whose joint rank exceeds a side of its matrix is written as that matrix and the identity.
    """
    out: Factors = {}
    for path in {p: None for _, part in parts for p in part}:
        mine = [(w, *part[path]) for w, part in parts if path in part]
        a = torch.cat([a for _, a, _ in mine])
        b = torch.cat([w * b for w, _, b in mine], dim=1)
        if a.shape[0] > min(a.shape[1], b.shape[0]):
            product = (b.double() @ a.double()).to(b.dtype)
            small = torch.eye(min(product.shape), dtype=b.dtype, device=b.device)
            a, b = (small, product) if product.shape[1] <= product.shape[0] else (product, small)
        out[path] = (a, b)
    return out


def with_factors(model: Any, factors: Factors) -> Any:
    """A copy of a PEFT model whose adapter is replaced by one of these factors, each branch of its own rank.

    Args:
        model: PEFT-wrapped; left as it is.
        factors: of the new adapter.
    """
    old = model.peft_config[model.active_adapter]
    plain = copied(model).unload()
    ranks = {path: a.shape[0] for path, (a, _) in factors.items()}
    most = max(ranks.values())
    others = {path: rank for path, rank in ranks.items() if rank != most}
    config = LoraConfig(
        r=most,
        lora_alpha=most,  # a scaling of 1: it is in B already
        rank_pattern=others,
        alpha_pattern=others,
        lora_dropout=old.lora_dropout,
        target_modules=list(ranks),
        fan_in_fan_out=old.fan_in_fan_out,
        task_type=old.task_type,
    )
    with torch.random.fork_rng():
        new = get_peft_model(plain, config)
    modules = dict(new.named_modules())
    with torch.no_grad():
        for path, (a, b) in factors.items():
            branch = modules[PREFIX + path]
            branch.lora_A["default"].weight.copy_(a)
            branch.lora_B["default"].weight.copy_(b)
    return new.eval()
