"""The forward pass without the work that the answer does not need.

Of the last layer the answer reads one position: its query, its output projection and its MLP are needed there
alone, its keys and values everywhere. With two layers that is nearly half of a pass, with thirty a thirtieth.
The model's own layer computes both parts: first it is run until it hands out keys and values, then it is run
again on the answer position alone, as in generation, with these for a cache.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from curerec.errors import ModelError
from curerec.recommender.families import family_of
from curerec.recommender.families.base import QUERY
from curerec.recommender.spread import listened_to

#: What a layer's hidden states, keys and values may be turned into, and back: see :mod:`.packed`.
Spread = Callable[[torch.Tensor], torch.Tensor]


class _Enough(Exception):
    """The keys and values are there; nothing after them is wanted."""


class _Taker:
    """A cache that takes keys and values and ends the pass."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(self, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **named: Any) -> Any:
        self.keys, self.values = keys, values
        raise _Enough

    def get_seq_length(self, *rest: Any) -> int:
        return 0


class _Giver:
    """A cache that hands out the keys and values of all positions, the new one's among them."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return self.keys, self.values

    def get_seq_length(self, *rest: Any) -> int:
        return self.keys.shape[-2] - 1


def hooked(module: Any) -> bool:
    """Whether anybody listens to or changes what a module or a part of it computes."""
    return any(listened_to(m) for m in module.modules())


def drops_out(model: Any) -> bool:
    """Whether random numbers enter the pass: leaving work out would hand them out otherwise."""
    return model.training and any(
        (isinstance(m, torch.nn.Dropout) and m.p > 0) or getattr(m, "attention_dropout", 0) > 0
        for m in model.modules()
    )


def can_be_lean(model: Any) -> bool:
    """Whether :func:`answer_only` gives what the whole pass gives.

    Not so where the family is unknown, where somebody listens to the last layer or changes what it computes,
    and while dropout is at work (the numbers would be as good, but others).
    """
    try:
        layer, norm = _ends(model)
    except (ModelError, AttributeError):
        return False
    free = not hooked(layer) and not hooked(norm)
    return free and not drops_out(model) and cache_name_of(type(layer)) is not None


def _ends(model: Any) -> tuple[Any, Any]:
    family = family_of(model)
    return family.layer_list(model)[-1], family.decoder(model).get_submodule(family.final_norm)


@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def cache_name_of(kind: type) -> str | None:
    """What a module's forward calls its cache of keys and values; None where it takes none."""
    return next((n for n in ("cache", "past_key_values") if n in _names(kind)), None)


@contextmanager
def answer_only(
    model: Any, last: torch.Tensor, *, spread: Spread | None = None, width: int | None = None
) -> Iterator[None]:
    """Passes inside give the answer position's final state at every position (it is stored once).

    Args:
        model: for which :func:`can_be_lean` holds; plain or PEFT-wrapped.
        last: int64 [batch], answer positions.
        spread: turns what the layer computes, [1, n, ...], into [batch, pos, ...]; None: it is that already.
        width: positions after ``spread``.
    """
    layer, norm = _ends(model)
    kind = type(layer)
    length = 0  # of the rows that the decoder was given
    names, cache_name = _names(kind), cache_name_of(kind)  # type: ignore[arg-type]
    assert cache_name is not None
    rows = torch.arange(len(last), device=last.device)
    spread = spread or (lambda x: x)

    def pick(x: torch.Tensor) -> torch.Tensor:  # [1 or batch, pos, ...] -> [batch, 1, ...]
        return spread(x).expand(len(last), *(-1,) * (x.dim() - 1))[rows, last][:, None]

    def lean(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal length
        kwargs = {**kwargs, **dict(zip(names, args, strict=False))}
        hidden = kwargs.pop(names[0])
        length = hidden.shape[1]
        taker = _Taker()
        checkpointing = getattr(module, "gradient_checkpointing", False)
        module.gradient_checkpointing = False  # next to nothing is kept of this layer; a cache excludes it
        try:
            with _without_queries(model, module):
                kind.forward(module, hidden, **{**kwargs, cache_name: taker})  # type: ignore[attr-defined]
        except _Enough:
            pass
        finally:
            module.gradient_checkpointing = checkpointing
        keys, values = (spread(x.transpose(1, 2)).transpose(1, 2) for x in (taker.keys, taker.values))
        kwargs[cache_name] = _Giver(keys, values)
        kwargs["attention_mask"] = _mask_row(kwargs.get("attention_mask"), last, width or length, rows)
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = pick(kwargs["position_ids"])
        if kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = tuple(pick(x) for x in kwargs["position_embeddings"])
        return (pick(hidden),), kwargs

    checkpointing = getattr(layer, "gradient_checkpointing", False)
    handles = [layer.register_forward_pre_hook(lean, with_kwargs=True)]
    # GPT-2 gives its output the shape of its input once more.
    handles.append(norm.register_forward_hook(lambda module, args, out: out.expand(-1, length, -1)))
    layer.gradient_checkpointing = False
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        layer.gradient_checkpointing = checkpointing


@contextmanager
def _without_queries(model: Any, layer: Any) -> Iterator[None]:
    """Queries inside are those of one head and zero: who only wants keys and values need not compute them.

    Where queries come out of one product with keys and values they are computed as ever.
    """
    family = family_of(model)
    query = family.projections.get(QUERY)
    if query is None:
        yield
        return
    product, width = layer.get_submodule(query.path), family.heads(model)[2]
    with replaced_forward(product, lambda x: x.new_zeros(width).expand(*x.shape[:-1], width)):
        yield


@contextmanager
def replaced_forward(module: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """A module that computes something else inside."""
    own = vars(module).get("forward")  # an offloaded module has one of its own
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _mask_row(
    mask: torch.Tensor | None, last: torch.Tensor, width: int, rows: torch.Tensor
) -> torch.Tensor | None:
    """The answer position's row of a mask, [batch, 1, 1, pos]."""
    if mask is None:  # the kernel was to see to causality by itself
        return (torch.arange(width, device=last.device) <= last[:, None])[:, None, None]
    return mask.expand(len(last), *(-1,) * (mask.dim() - 1))[rows, :, last][:, :, None]
