"""Passes that begin at a higher layer: those below give what they, or another model's, gave before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

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
