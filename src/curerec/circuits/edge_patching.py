"""Runs in which a part of the edges carries the corrupt prompt's signal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from curerec.circuits.activations import Activations, recording, sites_of
from curerec.circuits.passes import Cost
from curerec.circuits.patching import margins_with
from curerec.circuits.wiring import INPUT, Wiring, weight_of, wiring_of
from curerec.prompts.encoding import Prompts
from curerec.recommender.score import device_of, wide


@torch.inference_mode()
def edge_patched_margins(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    patch_sets: Sequence[np.ndarray],
    *,
    share: float = 1.0,
    batch_size: int = 16,
    cost: Cost | None = None,
) -> np.ndarray:
    """Margins with each set of edges patched, in one forward pass a set.

    A patched edge u -> v gives v what u writes in the corrupt run; all other readers still see what u writes
    in this run, which may have changed because of other patched edges. Every reader then has its own residual
    stream, so a pass costs the norms and maps of every reader apart and about L / 2 times the attention's
    output maps.

    Args:
        model: decoder of a known family.
        clean, corrupt: aligned prompts, [n].
        answers: token ids of (no, yes).
        patch_sets: bool [sources, readers] each, over :class:`curerec.circuits.wiring.Wiring`; what lies
            outside its mask is not read.
        share: of the way from the present to the corrupt write; below 1 for derivatives.
        batch_size: pairs a pass.
        cost: to be filled.

    Returns:
        float32 [sets, n].

    Source: Conmy et al. 2023 (ACDC), Hanna et al. 2024 (EAP-IG): interchange interventions on edges.
    """
    wiring, sites = wiring_of(model), sites_of(model)

    @contextmanager
    def changed(corrupt_acts: Any, patched: np.ndarray) -> Iterator[None]:
        mask = torch.from_numpy(patched & wiring.mask).to(device_of(model))
        with recording(sites) as acts, _rerouted(wiring, acts, corrupt_acts, mask, share):
            yield

    return margins_with(changed, model, clean, corrupt, answers, patch_sets, batch_size=batch_size, cost=cost)


def exact_edges(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """The change of the margin when one edge is patched, one forward pass an edge: for checks on tiny models.

    Returns:
        float32 [n, edges], edges in the order of :func:`curerec.circuits.edges.edge_scores`.
    """
    mask = wiring_of(model).mask
    sets = [np.zeros_like(mask)]
    for s, r in zip(*np.nonzero(mask), strict=True):
        sets.append(np.zeros_like(mask))
        sets[-1][s, r] = True
    runs = edge_patched_margins(model, clean, corrupt, answers, sets, batch_size=batch_size)
    return (runs[1:] - runs[0]).T


@contextmanager
def _rerouted(
    wiring: Wiring, acts: Activations, corrupt: Activations, mask: torch.Tensor, share: float
) -> Iterator[None]:
    """Give every reader the stream that ``mask`` [sources, readers] prescribes, during the passes inside.

    ``acts`` must hold, when a reader is reached, what the sources before it wrote in this very pass.
    """
    streams: dict[tuple[int, str], torch.Tensor] = {}
    attention_out: dict[int, torch.Tensor] = {}

    def change(readers: slice) -> torch.Tensor | None:
        """What patched sources write differently for each of some readers, [r, batch, pos, d_model]."""
        before = wiring.sources_before(wiring.readers[readers.start])
        chosen = mask[:before, readers]
        if not bool(chosen.any()):
            return None
        weights = chosen.T.to(wide(acts[INPUT]).dtype) * share

        def gap(name: str) -> torch.Tensor:
            return wide(corrupt[name]) - wide(acts[name])

        total = weights[:, 0, None, None, None] * gap(INPUT)
        for k, layer in enumerate(wiring.layers):
            heads = wiring.head_columns(k)
            if heads.stop > before:
                break
            if bool(chosen[heads].any()):
                name = f"layers.{k}.attn"
                z = gap(name).unflatten(-1, (wiring.n_heads, wiring.width))
                masked = (weights[:, heads][:, None, None, :, None] * z).flatten(-2)
                delta = masked @ weight_of(layer.attention_out).T
                if layer.post is None:
                    total = total + delta
                else:
                    y = wide(attention_out[k])
                    total = total + wide(layer.post.forward((y + delta).to(attention_out[k].dtype)))
                    total = total - wide(layer.post.forward(attention_out[k]))
            column = wiring.mlp_column(k)
            if column < before and bool(chosen[column].any()):
                total = total + weights[:, column, None, None, None] * gap(f"layers.{k}.mlp")
        return total

    def read(norm: Any, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        return norm.forward((wide(x) + delta).to(x.dtype))  # not a pass of the model: no hooks

    def keep(into: dict[Any, torch.Tensor], key: Any, x: torch.Tensor) -> None:
        into[key] = x

    def at_norm(key: tuple[int, str]) -> Any:
        return lambda norm, args: keep(streams, key, args[0])

    def at_reading(k: int, layer: Any, reading: Any) -> Any:
        def hook(module: Any, args: Any, y: torch.Tensor) -> torch.Tensor:
            y = y.clone()
            x = streams[k, "attention"]
            for kind, first, heads in reading.parts:
                delta = change(wiring.columns(k, kind))
                if delta is None:
                    continue
                rows = slice(first, first + heads * wiring.width)
                weight = weight_of(module)[rows].unflatten(0, (heads, wiring.width))
                moved = wide(read(layer.attention_norm, x, delta)) - wide(args[0])
                y[..., rows] += torch.einsum("nbtd,nwd->btnw", moved, weight).flatten(-2).to(y.dtype)
            return y

        return hook

    def at_mlp(k: int, layer: Any) -> Any:
        def hook(module: Any, args: Any) -> Any:
            column = wiring.mlp_reader(k)
            delta = change(slice(column, column + 1))
            if delta is None:
                return None
            return (read(layer.mlp_norm, streams[k, "mlp"], delta[0]), *args[1:])

        return hook

    def at_logits(norm: Any, args: Any) -> Any:
        delta = change(slice(len(wiring.readers) - 1, len(wiring.readers)))
        return None if delta is None else ((wide(args[0]) + delta[0]).to(args[0].dtype), *args[1:])

    def at_post(k: int) -> Any:
        return lambda norm, args: keep(attention_out, k, args[0])

    with ExitStack() as stack:

        def add(handle: Any) -> None:
            stack.callback(handle.remove)

        for k, layer in enumerate(wiring.layers):
            add(layer.attention_norm.register_forward_pre_hook(at_norm((k, "attention"))))
            add(layer.mlp_norm.register_forward_pre_hook(at_norm((k, "mlp"))))
            for reading in layer.readings:
                add(reading.module.register_forward_hook(at_reading(k, layer, reading)))
            add(layer.mlp.register_forward_pre_hook(at_mlp(k, layer)))
            if layer.post is not None:
                add(layer.post.register_forward_pre_hook(at_post(k)))
        add(wiring.final_norm.register_forward_pre_hook(at_logits))
        yield
