"""What a norm computes, in the terms in which circuits read it: ``y = scale (x - mean) gain + bias``."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from curerec.errors import ModelError


class NormParts(NamedTuple):
    """Of ``y = scale * (x - mean) * gain + bias`` at an input.

    Attributes:
        mean: of the input for a LayerNorm, [..., 1]; None for an RMS norm.
        scale: inverse root mean square, [..., 1].
        gain: [d_model].
    """

    mean: torch.Tensor | None
    scale: torch.Tensor
    gain: torch.Tensor


def is_norm(module: Any) -> bool:
    """Whether a module is a norm (LayerNorm, LlamaRMSNorm, ...)."""
    return type(module).__name__.endswith("Norm")


@torch.no_grad()
def norm_parts(norm: Any, x: torch.Tensor) -> NormParts:
    """Of a LayerNorm, or an RMS norm of any family (whose gain may be stored as 1 + weight).

    Args:
        norm: module.
        x: its input, [..., d_model], in at least single precision.

    Raises:
        ModelError: neither of the two.
    """
    eps = getattr(norm, "variance_epsilon", None)
    eps = getattr(norm, "eps", None) if eps is None else eps
    centring = isinstance(norm, torch.nn.LayerNorm)
    if eps is None or not (centring or is_norm(norm)):
        raise ModelError(
            f"{type(norm).__name__} is no norm this package can read through",
            where="circuit",
            mend="Use a model of a known family",
        )
    if centring:
        mean, gain = x.mean(-1, keepdim=True), norm.weight.detach().to(x.dtype)
        return NormParts(mean, ((x - mean).square().mean(-1, keepdim=True) + eps).rsqrt(), gain)
    # What the norm makes of a constant is its gain, however the family stores it; hooks on the norm must not
    # take this for a pass of the model, so it is not called but its forward is.
    probe = torch.full((x.shape[-1],), 1024.0, dtype=x.dtype, device=x.device)
    gain = norm.forward(probe).to(x.dtype) * (1 + eps / 1024.0**2) ** 0.5
    return NormParts(None, (x.square().mean(-1, keepdim=True) + eps).rsqrt(), gain)
