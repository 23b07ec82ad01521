"""How a machine is used, apart from what is computed on it: none of these settings may change a result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers.modeling_layers import GradientCheckpointingLayer

from curerec.recommender.families import family_of

STEP = 64  # tokens; lengths are rounded up to it where shapes are compiled, so that there are few


class RuntimeConfig(BaseModel):
    """Use of the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    compile: bool | None = Field(
        None, description="compile the layers (torch.compile); none: on a GPU, where training is long enough"
    )
    checkpoint: bool = Field(False, description="keep no activations of a layer, compute them twice")
    offload_bytes: int = Field(
        0, ge=0, description="activations kept in main memory instead of the GPU's, at most so many bytes"
    )


#: Steps from which compiling pays. It takes about a minute and is part of the training's seconds; at 115,000
#: tokens a second uncompiled and 332,000 compiled (SmolLM2-135M on an H100, first measurements of this
#: project's authors) a minute is saved in ten million tokens, a thousand steps of 64 prompts of 150.
PAYS_OFF = 1000


def compiles(config: RuntimeConfig, device: torch.device, steps: int, *, spread: bool = False) -> bool:
    """Whether the layers are to be compiled.

    Args:
        config: says so, or leaves it to the rest.
        device: of the model.
        steps: of the training.
        spread: its frozen products are in parts (:mod:`.spread`). Compiling works there, but FSDP's hooks
            break the graph at every product, so nobody gets it unasked.
    """
    if config.compile is None:
        return device.type == "cuda" and steps >= PAYS_OFF and not config.checkpoint and not spread
    return config.compile


#: Shapes that a layer is compiled for: one for each length in steps of :data:`STEP` and each size of a batch.
#: Beyond torch's own limit of eight it would go on uncompiled, with a warning in the log alone.
MOST_SHAPES = 64


@contextmanager
def compiled_layers(model: Any, *, backend: Any = "inductor") -> Iterator[None]:
    """Decoder layers compiled one by one inside: one graph serves all of them.

    The last layer is left as it is: of it only the answer's part is computed, see
    :mod:`curerec.recommender.lean`.

    Args:
        model: of a known family.
        backend: of ``torch.compile``.
    """
    import torch._dynamo.config as dynamo

    layers = family_of(model).layer_list(model)[:-1]
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    for layer in layers:
        layer.compile(backend=backend, dynamic=False)
    try:
        # What cannot be compiled, as without a C compiler, is run as it is, with a warning from torch.
        with dynamo.patch({limit: MOST_SHAPES, "suppress_errors": True}):
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Gradient checkpointing inside; as it was afterwards."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        base.gradient_checkpointing_disable()


def runs_twice(layer: Any) -> bool:
    """Whether it is a layer whose checkpoint lets gradients be asked of what is inside it."""
    keywords = getattr(getattr(layer, "_gradient_checkpointing_func", None), "keywords", {})
    return isinstance(layer, GradientCheckpointingLayer) and keywords.get("use_reentrant") is False


def train_checkpointed(model: Any) -> None:
    """Put checkpointed layers in training mode, in which alone they save memory; none of their parts."""
    for m in model.modules():
        if getattr(m, "gradient_checkpointing", False) and runs_twice(m):
            m.training = True


@contextmanager
def kept_few(model: Any, config: RuntimeConfig | None) -> Iterator[None]:
    """Forward passes inside keep what the configuration says, where it says, and drop out what they did.

    For models that are asked in eval mode, as updates do; on the way back nothing has to be set.

    Args:
        model: of a known family, plain or PEFT-wrapped.
        config: None: everything is kept on the model's device.
    """
    if config is None or not torch.is_grad_enabled() or not (config.checkpoint or config.offload_bytes):
        yield
        return
    modes = [(m, m.training) for m in model.modules()]
    with ExitStack() as stack:
        if config.checkpoint:
            if not any(runs_twice(m) and m.gradient_checkpointing for m in model.modules()):
                stack.enter_context(checkpointed(model))
            train_checkpointed(model)
        if config.offload_bytes:
            stack.enter_context(_of_all_passes(config.offload_bytes))
        try:
            yield
        finally:
            for m, mode in modes:
                m.training = mode


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Activations saved for the backward pass go to main memory, up to a budget.

    The host does not wait for the copies (pinned memory), the GPU does: they queue in the stream of the
    computation, so memory is paid for in time. What does not fit the budget stays where it is, and so do
    weights, which are in the GPU's memory anyway.

    Args:
        budget_bytes: at most so much at a time.
        smallest_bytes: smaller tensors are not worth a copy.

    Attributes:
        held_bytes: of activations in main memory now.
        peak_bytes: largest ``held_bytes`` so far.
    """

    def __init__(self, budget_bytes: int, *, smallest_bytes: int = 1 << 20) -> None:
        self.budget_bytes, self.smallest_bytes = budget_bytes, smallest_bytes
        self.held_bytes = self.peak_bytes = 0
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> Any:
        size = tensor.numel() * tensor.element_size()
        taken = counted(size, pinned=tensor.device.type == "cuda")
        if _weight(tensor) or size < self.smallest_bytes or self.held_bytes + taken > self.budget_bytes:
            return tensor
        return _Held(self, tensor, taken)

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        return packed.copy.to(packed.device, non_blocking=True)


def counted(size: int, pinned: bool) -> int:
    """Bytes of main memory that a copy of so many takes: torch rounds pinned blocks up to a power of two.

    Example:
        >>> counted(5, pinned=False), counted(5, pinned=True), counted(8, pinned=True)
        (5, 8, 8)
    """
    return 1 << (size - 1).bit_length() if pinned and size else size


def _weight(tensor: torch.Tensor) -> bool:
    """Whether it is a weight or a view of one: a product saves its weight transposed."""
    return isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter)


class _Held:
    """A copy in main memory, counted until the graph lets go of it, however often it was read."""

    def __init__(self, offload: Offload, tensor: torch.Tensor, size: int) -> None:
        self.offload, self.size, self.device = offload, size, tensor.device
        offload.held_bytes += size
        offload.peak_bytes = max(offload.peak_bytes, offload.held_bytes)
        pinned = tensor.device.type == "cuda"
        self.copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        self.copy.copy_(tensor, non_blocking=pinned)

    def __del__(self) -> None:
        self.offload.held_bytes -= self.size


@cache
def _of_all_passes(budget_bytes: int) -> Offload:
    """The one of a budget: what several passes keep at once, as two losses of a step do, counts together."""
    return Offload(budget_bytes)


def kept_low(config: RuntimeConfig) -> Any:
    """Context of a forward pass whose activations are put where the configuration says."""
    return Offload(config.offload_bytes) if config.offload_bytes else nullcontext()
