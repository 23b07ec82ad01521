"""Passes that begin at a higher layer: those below give what they, or another model's, gave before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from curerec.recommender.lean import replaced_forward


@contextmanager
def outputs_of(layers: Sequence[Any]) -> Iterator[list[Any]]:
    """What each of the layers returns in the pass inside, in their order.

    Args:
        layers: of a decoder, all or the lower ones.
    """
    seen: list[Any] = [None] * len(layers)

    def keep(k: int) -> Any:
        return lambda module, args, output: seen.__setitem__(k, output)

    with ExitStack() as stack:
        for k, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(keep(k)).remove)
        yield seen


class _Entered(Exception):
    """What enters the layer is known; nothing after it is wanted."""


def entering(decoder: Any, layer: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a layer gets in a pass over ids, [batch, pos, d_model]; the pass ends there.

    Args:
        decoder: the stack of layers.
        layer: one of them.
        ids: int64 [batch, pos].
    """
    seen: list[torch.Tensor] = []

    def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Entered

    # Before all other hooks: one that is there already (:mod:`curerec.recommender.lean`) changes what enters.
    handle = layer.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        decoder(input_ids=ids, use_cache=False)
    except _Entered:
        pass
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def beginning_at(layers: Sequence[Any], first: int, outputs: Sequence[Any]) -> Iterator[None]:
    """Passes inside compute the layers from ``first`` on; those below give what is at hand.

    Args:
        layers: of the decoder.
        first: 0 to the number of layers.
        outputs: from :func:`outputs_of`, in a pass over the same prompts, of this model or one of its shape.
    """
    with ExitStack() as stack:
        for layer, output in zip(layers[:first], outputs, strict=False):
            stack.enter_context(replaced_forward(layer, lambda *args, output=output, **named: output))
        yield
