"""Scorer ``relp``: attribution patching with a backward pass in which the model is linear."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from curerec.circuits.attribution import attribute
from curerec.circuits.passes import Scores
from curerec.circuits.wiring import Layer, NormAt, Reading, wiring_of
from curerec.errors import ModelError
from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.families.norms import is_norm


def score(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    among: Collection[str] | None = None,
    batch_size: int = 64,
) -> Scores:
    """As ``atp``, with propagation coefficients of layer-wise relevance propagation in place of gradients.

    - norms: the scale is a constant (LN rule);
    - activation functions: f(x) = x * r with r = f(x) / x a constant (identity rule);
    - gates: of a product each factor gets half (half rule);
    - attention: the pattern is a constant, so relevance flows through the values alone (AH rule).

    A cap of the answer logits (Gemma-2) belongs to the metric and keeps its slope: without biases,
    coefficient times input then adds up to the margin of ``u (1 - (z / cap)^2)``, with u the logits before
    the cap and z after it; without a cap, to the margin itself.

    The forward pass is the model's own. The backward pass then does not see local slopes, which far from the
    first order of a large change say little.

    Args:
        model, clean, corrupt, answers, among, batch_size: as for ``atp``; all passes are whole ones.

    Raises:
        ModelError: an MLP without an activation function this package can find.

    Source: Rezaei Jafari et al. 2025, RelP, arXiv 2508.21258, rules of its table 1.
    """
    return attribute(
        model,
        clean,
        corrupt,
        answers,
        scorer="relp",
        context=linearised,
        among=among,
        batch_size=batch_size,
    )


@contextmanager
def linearised(model: Any) -> Iterator[None]:
    """The model's backward pass made linear inside; what it computes forward stays the same."""
    family, wiring = family_of(model), wiring_of(model)
    projections = family.projections.values()
    paths = [p.path for p in projections if "down_proj" in p.parts]
    gated = any("gate_proj" in p.parts for p in projections)
    with ExitStack() as stack:
        norms = {id(wiring.final_norm): wiring.final_norm}
        for layer, module in zip(wiring.layers, family.layer_list(model), strict=True):
            norms |= {id(m): m for m in _norms(layer, module.get_submodule(family.mlp_out))}
        for norm in norms.values():
            stack.callback(norm.register_forward_hook(_constant_scale).remove)
        for layer, module in zip(wiring.layers, family.layer_list(model), strict=True):
            for reading in layer.readings:
                stack.callback(
                    reading.module.register_forward_hook(_values_only(reading, wiring.width)).remove
                )
            stack.callback(_activation(layer.mlp).register_forward_hook(_constant_ratio).remove)
            for path in paths if gated else ():
                stack.callback(module.get_submodule(path).register_forward_pre_hook(_half).remove)
        yield


def _norms(layer: Layer, mlp_out: Any) -> list[Any]:
    """All norms on the residual path of a layer; what the MLP adds may come out of one, too (Gemma)."""
    post = [layer.post] if layer.post is not None else []
    return [layer.attention_norm, layer.mlp_norm, *post, *([mlp_out] if is_norm(mlp_out) else [])]


def _activation(mlp: Any) -> Any:
    found = [m for name, m in mlp.named_children() if name.startswith("act")]
    if len(found) != 1:
        raise ModelError(
            f"{type(mlp).__name__} has no activation function with a name of its own",
            where="scorer relp",
            mend="Use the scorer atp_ig",
        )
    return found[0]


def _same_value(y: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    """The value of ``y`` with the gradient of ``linear``."""
    return y.detach() + (linear - linear.detach()).to(y.dtype)


def _constant_scale(norm: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
    at = NormAt.of(norm, args[0], fixed_scale=True)
    return _same_value(y, at.pushed(args[0].to(at.gain.dtype)))


def _constant_ratio(module: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
    x = args[0]
    small = x.detach().abs() < 1e-6
    # Near 0 the ratio is the slope there, 1/2 for SiLU and GELU.
    ratio = torch.where(small, 0.5, y.detach() / torch.where(small, 1.0, x.detach()))
    return _same_value(y, x * ratio)


def _half(module: Any, args: Any) -> Any:
    x = args[0]
    return ((x + x.detach()) / 2, *args[1:])


def _values_only(reading: Reading, width: int) -> Any:
    def hook(module: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
        parts = []
        for kind, first, heads in reading.parts:
            part = y[..., first : first + heads * width]
            parts.append(part if kind == "v" else part.detach())
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    return hook
