"""States below the lowest layer that is updated: computed once a prompt, then kept.

Nothing below the lowest layer with an adapter changes, whatever is trained, taken back or asked above it,
and the base gives there what its fine-tuned copies give. Nor does anything below the lowest weight of a model
without adapters that asks for a gradient, while steps are taken. Epochs, steps, looks and attacks pass over
the same prompts many times, so what enters that layer is kept and passes begin there. It is a cache: without
it, or where it does not apply, the same numbers are computed anew (up to the rounding of products of another
shape).
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from curerec.errors import ModelError
from curerec.recommender.copies import LORA
from curerec.recommender.families import family_of
from curerec.recommender.layers import beginning_at, entering
from curerec.recommender.lean import drops_out, hooked
from curerec.recommender.spread import is_spread

#: Kept in a process, at most; 2,000 prompts of 90 tokens at width 576 in bfloat16 take 200 MB.
BYTES = 2 * 2**30


class States:
    """States by prompt, the least recently used given up first.

    Attributes:
        most: bytes to hold at most.
        held: bytes that are held.
        computed: prompts whose states were computed, since the start.
    """

    def __init__(self, most: int = BYTES) -> None:
        self.most, self.held, self.computed = most, 0, 0
        self._kept: OrderedDict[tuple[str, bytes], torch.Tensor] = OrderedDict()

    def get(self, key: tuple[str, bytes]) -> torch.Tensor | None:
        """The states of a prompt, [tokens, d_model], if they are held."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: tuple[str, bytes], states: torch.Tensor) -> None:
        """Hold the states of a prompt, [tokens, d_model]."""
        self.computed += 1
        size = states.numel() * states.element_size()
        if size > self.most or key in self._kept:
            return
        self._kept[key] = states
        self.held += size
        while self.held > self.most:
            _, gone = self._kept.popitem(last=False)
            self.held -= gone.numel() * gone.element_size()

    def clear(self) -> None:
        """Give everything up."""
        self._kept.clear()
        self.held = 0


#: Of this process: recommenders of one base share it, also when that base is loaded again.
STATES = States()


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Every pass inside is a whole one: for who measures what a pass costs."""
    most, STATES.most = STATES.most, 0
    try:
        yield
    finally:
        STATES.most = most


def begins_at(model: Any, listened_from: int | None = None) -> int:
    """The layer that passes over prompts begin at, here and now; 0: at the embeddings.

    Args:
        model: plain or PEFT-wrapped.
        listened_from: the lowest layer that somebody is about to listen to; None: nobody is.
    """
    first = lowest_updated(model) if STATES.most else 0
    return first if listened_from is None or first <= listened_from else 0


def forget_states() -> None:
    """Drop all kept states and what is known of the weights: for who has written through ``.data``."""
    STATES.clear()
    _read.clear()


def states_computed() -> int:
    """Prompts whose states were computed, since the process began."""
    return STATES.computed


def lowest_updated(model: Any) -> int:
    """Index of the lowest layer that is updated; 0 where nothing below one is known to stay as it is.

    That is the lowest with an adapter, whether it is trained or asked; of a model without adapters the lowest
    with a weight that asks for a gradient. Not where a weight below it can change, somebody listens there,
    random numbers enter, the layers are compiled, in few bits or shared out among processes. On a GPU ids
    would have to be read back for every batch, so there it is not done.
    """
    if hasattr(model, "answer_logits"):
        return 0
    try:
        layers = family_of(model).layer_list(model)
    except (ModelError, AttributeError):
        return 0
    lora = hasattr(model, "peft_config")
    weights_of = (layer.named_parameters() for layer in layers)
    updated = [any(LORA in n if lora else p.requires_grad for n, p in of_layer) for of_layer in weights_of]
    first = updated.index(True) if any(updated) else 0
    if first == 0:
        return 0
    parts = _below(model, first)
    weights = [(name, p) for part in parts for name, p in part.named_parameters()]
    still = all(p.device.type == "cpu" and not p.requires_grad and LORA not in name for name, p in weights)
    free = not any(hooked(part) for part in parts)
    plain = all(_plain(m) for part in parts for m in part.modules())
    return first if still and free and plain and not _drops_out_below(model, first) else 0


def _plain(module: Any) -> bool:
    """Whether a module computes what its class and weights say: no router put in its place, not compiled.

    Weights in few bits do not say it: their scales are no parameters, and two bases may have equal codes.
    """
    known = type(module).__module__.partition(".")[0] in ("torch", "transformers")
    changed = "forward" in vars(module) or getattr(module, "_compiled_call_impl", None) is not None
    return known and not changed and not is_spread(module)


def _below(model: Any, first: int) -> list[Any]:
    """Everything that a state entering layer ``first`` is made by: embeddings, positions, layers.

    Rotations are no layer's own: the decoder has a module for them, whose frequencies lie in buffers. In half
    precision they are rounded where a whole model was moved to it, and not where it was loaded in it.
    """
    family = family_of(model)
    decoder = family.decoder(model)
    positions = [] if family.positions is None else [decoder.get_submodule(family.positions)]
    positions += [m for name, m in decoder.named_children() if name.startswith("rotary_emb")]
    return [decoder.get_input_embeddings(), *positions, *family.layer_list(model)[:first]]


def _drops_out_below(model: Any, first: int) -> bool:
    family = family_of(model)
    # Some families drop out of the embeddings, by a module of the decoder's own.
    own = [m for m in family.decoder(model).children() if isinstance(m, torch.nn.Dropout)]
    return any(m.training and m.p > 0 for m in own) or any(
        drops_out(layer) for layer in family.layer_list(model)[:first]
    )


@contextmanager
def kept_below(
    model: Any, ids: torch.Tensor, last: torch.Tensor, *, leaf: bool = False
) -> Iterator[torch.Tensor | None]:
    """A pass over these prompts inside begins at the lowest layer that is updated, unless that is the first.

    Args:
        model: plain or PEFT-wrapped.
        ids: int64 [batch, pos], right-padded.
        last: int64 [batch], answer positions; what stands behind them is padding.
        leaf: gradients are to be had for what enters that layer, where no weight asks for one.

    Yields:
        What enters that layer, [batch, pos, d_model]; None where the pass begins at the embeddings.
    """
    first = begins_at(model)
    if first == 0:
        yield None
        return
    states = _states(model, first, ids, last).requires_grad_(leaf)
    with beginning_at(family_of(model).layer_list(model), first, [states] * first):
        yield states


def _states(model: Any, first: int, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """What enters a layer, [batch, pos, d_model], 0 at padding; what is not held is computed."""
    family = family_of(model)
    layer = family.layer_list(model)[first]
    name = _digest(model, first)
    rows = [row[: end + 1] for row, end in zip(ids.numpy(), last.tolist(), strict=True)]
    keys = [(name, row.tobytes()) for row in rows]
    found = [STATES.get(key) for key in keys]
    missing = [k for k, states in enumerate(found) if states is None]
    if missing:
        width = int(last[missing].max()) + 1
        # No inference mode: what is kept enters graphs of training later.
        with torch.inference_mode(False), torch.no_grad():
            new = entering(family.decoder(model), layer, ids[missing, :width].clone())
            for k, states in zip(missing, new, strict=True):
                found[k] = own = states[: len(rows[k])].clone()
                STATES.put(keys[k], own)
    with torch.inference_mode(False), torch.no_grad():
        full = [torch.nn.functional.pad(s, (0, 0, 0, ids.shape[1] - len(s))) for s in found if s is not None]
        return torch.stack(full)


class _Read:
    """Weights that were read: the very tensors, as they were then.

    Torch counts what is written into a tensor, but not what goes through ``.data``; of that only another
    type or another place in memory is seen. Who writes so below what is updated has to call
    :func:`forget_states`.
    """

    def __init__(self, weights: list[torch.Tensor], shape: str, digest: str) -> None:
        self.seen = [(weakref.ref(t), _state(t)) for t in weights]
        self.shape, self.digest = shape, digest

    def still(self, weights: list[torch.Tensor], shape: str) -> bool:
        """Whether these are they, and unchanged. Places in memory do not tell: they are used again."""
        return (
            self.shape == shape
            and len(self.seen) == len(weights)
            and all(
                ref() is t and state == _state(t) for (ref, state), t in zip(self.seen, weights, strict=True)
            )
        )


def _state(t: torch.Tensor) -> tuple[int, int, torch.dtype]:
    return t._version, t.data_ptr(), t.dtype


_read: list[_Read] = []  # the last few


def _digest(model: Any, first: int) -> str:
    """What the states depend on beside the prompt: the configuration and every weight below, SHA-256.

    Reading all weights takes up to a second; those that were read and are unchanged are not read again.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    shape = f"{first} {plain.config.to_json_string(use_diff=False)}"
    weights = [t for part in _below(model, first) for t in (*part.parameters(), *part.buffers())]
    for known in _read:
        if known.still(weights, shape):
            return known.digest
    digest = hashlib.sha256(shape.encode())
    for t in weights:
        digest.update(f"{t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    _read[:] = [_Read(weights, shape, digest.hexdigest()), *_read[:15]]
    return _read[0].digest
