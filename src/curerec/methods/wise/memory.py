"""A side memory beside a linear map, and the routing between the two."""

from __future__ import annotations

from typing import Any

import torch

from curerec.methods.edits import plain, transposed
from curerec.recommender.storage import NOT_STORABLE


class SideMemory(torch.nn.Module):
    """A changed copy of a linear map that answers only for prompts which excite it.

    The copy is kept as its difference ``delta`` to the main map, zero outside ``mask``. A prompt's activation
    is the mean over its tokens of ``|delta x|``; above ``threshold`` the copy's output is used. The mean runs
    from the first token to the current one, so that padding on the right and tokens to come have no say.

    Attributes:
        delta: W' - W, float32 [out, in].
        mask: bool [out, in], what may differ.
        threshold: activation from which the copy answers; infinite: never.
        editing: the copy answers always, and ``activation`` [batch, pos] is kept for a loss.

    Source: Wang et al. 2024 (WISE), arXiv 2405.14768, eq. 3 to 5.
    """

    mask: torch.Tensor
    threshold: torch.Tensor

    def __init__(self, module: Any, share: float, generator: torch.Generator) -> None:
        super().__init__()
        weight = plain(module).weight
        shape = weight.T.shape if transposed(module) else weight.shape
        mask = torch.rand(shape, generator=generator) < share
        self.delta = torch.nn.Parameter(torch.zeros(shape, device=weight.device))
        self.register_buffer("mask", mask.to(weight.device))
        self.register_buffer("threshold", torch.tensor(float("inf"), device=weight.device))
        self.editing = False
        self.activation: torch.Tensor | None = None

    def route(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        """Forward hook of the main map."""
        extra = args[0].float() @ self.delta.T
        count = torch.arange(1, extra.shape[1] + 1, device=extra.device)
        activation = extra.norm(dim=-1).cumsum(-1) / count
        if self.editing:
            self.activation = activation
            return output + extra.to(output.dtype)
        routed = (activation > self.threshold)[..., None]
        return output + torch.where(routed, extra, torch.zeros_like(extra)).to(output.dtype)


def attach(module: Any, share: float, seed: int) -> SideMemory:
    """Put a side memory beside a linear map, in place.

    Args:
        module: the map, plain or with a LoRA branch.
        share: of its entries that the memory may differ in.
        seed: of the choice of the entries.
    """
    side = SideMemory(module, share, torch.Generator().manual_seed(seed))
    module.add_module("side_memory", side)
    module.register_forward_hook(side.route)
    reason = "it answers some prompts from a side memory that is routed to while it runs"
    setattr(side, NOT_STORABLE, reason)
    return side
