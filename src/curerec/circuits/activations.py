"""Reading and replacing what heads and MLPs write, on the real Hugging Face modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from curerec.recommender.families import Family, family_of

Activations = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sites:
    """The places of a model that can be recorded and patched.

    ``input`` is the embedding output as the first layer reads it, [batch, pos, d_model] (recorded only);
    ``layers.L.attn`` is the input of the attention's output projection, [batch, pos, heads * width];
    ``layers.L.mlp`` what the MLP writes, [batch, pos, d_model].
    """

    family: Family
    first: Any
    attention: dict[str, Any]
    mlp: dict[str, Any]
    n_heads: int
    names: tuple[str, ...]

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.attention)

    def per_head(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, pos, heads * width] as [batch, pos, heads, width]."""
        return x.unflatten(-1, (self.n_heads, -1))


def sites_of(model: Any) -> Sites:
    """Sites of a model of a known family.

    Raises:
        ModelError: unknown family.
    """
    family = family_of(model)
    layers = family.layer_list(model)
    return Sites(
        family=family,
        first=layers[0],
        attention={
            f"layers.{k}.attn": layer.get_submodule(family.attention_out) for k, layer in enumerate(layers)
        },
        mlp={f"layers.{k}.mlp": layer.get_submodule(family.mlp_out) for k, layer in enumerate(layers)},
        n_heads=family.heads(model)[0],
        names=tuple(family.module_names(model)),
    )


def site_of(module: str) -> str:
    """Site that holds a module's activation.

    >>> site_of("layers.0.head.3"), site_of("layers.1.mlp")
    ('layers.0.attn', 'layers.1.mlp')
    """
    return module.split(".head.")[0] + ".attn" if ".head." in module else module


def layer_of(module: str) -> int:
    """Number of the layer of a head or MLP.

    >>> layer_of("layers.12.head.3")
    12
    """
    return int(module.split(".")[1])


def recomputing() -> bool:
    """Whether a layer with gradient checkpointing is run again, for the backward pass.

    What is recorded was recorded the first time; hooks that change what is computed must do so again.
    """
    return bool(torch._C._current_graph_task_id() != -1)


@contextmanager
def recording(
    sites: Sites, *, into: Callable[[str, torch.Tensor], None] | None = None, first: int = 0
) -> Iterator[Activations]:
    """Activations of all sites during the forward passes inside; tensors stay part of the graph.

    Args:
        sites: of the model.
        into: told (site, activation) instead of keeping them all; the dict then stays empty.
        first: the lowest layer that is listened to; ``input`` is recorded only with 0.
    """
    seen: Activations = {}
    keep = into or seen.__setitem__

    def before(name: str) -> Any:
        return lambda module, args: None if recomputing() else keep(name, args[0])

    def after(name: str) -> Any:
        return lambda module, args, output: None if recomputing() else keep(name, output)

    handles = [] if first else [sites.first.register_forward_pre_hook(before("input"))]
    above = {n for n in (*sites.attention, *sites.mlp) if layer_of(n) >= first}
    handles += [m.register_forward_pre_hook(before(n)) for n, m in sites.attention.items() if n in above]
    handles += [m.register_forward_hook(after(n)) for n, m in sites.mlp.items() if n in above]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@lru_cache(maxsize=1024)
def _places(heads: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """An index on a device: one made in every pass would be copied there each time, and waited for."""
    with torch.inference_mode(False):
        return torch.tensor(heads, device=device)


@contextmanager
def patching(sites: Sites, values: Activations, modules: set[str]) -> Iterator[None]:
    """Replace the activations of ``modules`` by ``values`` during the forward passes inside.

    Args:
        sites: of the model.
        values: activations by site, as :func:`recording` gives them, of prompts with the same positions.
        modules: names of heads and MLPs to replace.
    """
    handles = []

    def heads_hook(name: str, heads: tuple[int, ...]) -> Any:
        def hook(module: Any, args: Any) -> Any:
            x = sites.per_head(args[0]).clone()
            at = _places(heads, x.device)
            x[:, :, at] = sites.per_head(values[name])[:, :, at].to(x)
            return (x.flatten(-2), *args[1:])

        return hook

    def mlp_hook(name: str) -> Any:
        return lambda module, args, output: values[name].to(output)

    for layer in range(sites.n_layers):
        chosen = [h for h in range(sites.n_heads) if f"layers.{layer}.head.{h}" in modules]
        if chosen:
            name = f"layers.{layer}.attn"
            hook = heads_hook(name, tuple(chosen))
            handles.append(sites.attention[name].register_forward_pre_hook(hook))
        if f"layers.{layer}.mlp" in modules:
            name = f"layers.{layer}.mlp"
            handles.append(sites.mlp[name].register_forward_hook(mlp_hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
