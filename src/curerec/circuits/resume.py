"""Patched passes that begin at the first layer they change: what lies below is as in the clean run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from curerec.recommender.lean import replaced_forward


@contextmanager
def outputs_of(layers: Sequence[Any]) -> Iterator[list[Any]]:
    """What each layer but the last returns in the pass inside, in their order.

    Args:
        layers: of the decoder.
    """
    seen: list[Any] = [None] * (len(layers) - 1)

    def keep(k: int) -> Any:
        return lambda module, args, output: seen.__setitem__(k, output)

    handles = [layer.register_forward_hook(keep(k)) for k, layer in enumerate(layers[:-1])]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def beginning_at(layers: Sequence[Any], first: int, outputs: Sequence[Any]) -> Iterator[None]:
    """Passes inside compute the layers from ``first`` on; those below give what they gave before.

    Args:
        layers: of the decoder.
        first: 0 to the last layer.
        outputs: from :func:`outputs_of`, in a pass over the same prompts.
    """
    with ExitStack() as stack:
        for layer, output in zip(layers[:first], outputs, strict=False):
            stack.enter_context(replaced_forward(layer, lambda *args, output=output, **named: output))
        yield
