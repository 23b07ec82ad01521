"""Passes through a decoder, counted while something runs."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch.nn.modules.module import register_module_forward_hook
from transformers import PreTrainedModel


class PassCount:
    """Counts passes through any decoder of what runs inside ``with``.

    ``forward_equivalents = prompts forward + 2 x prompts backward``, a backward pass costing about twice a
    forward one. A batch counts as its number of prompts, whatever their length; a pass is counted where the
    decoder stack is entered, a backward where a gradient reaches the stack's output. A pass through parts of
    the stack counts whole. Where one runs inside another, both count.

    Attributes:
        forward_equivalents: prompts.
    """

    def __init__(self) -> None:
        self.forward_equivalents = 0.0
        self._hook: Any = None

    def __enter__(self) -> PassCount:
        self._hook = register_module_forward_hook(self._count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    def _count(self, module: Any, args: Any, output: Any) -> None:
        # The decoder stack: a model whose output is hidden states, without a readout of its own.
        if not isinstance(module, PreTrainedModel) or module.get_output_embeddings() is not None:
            return
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            return
        prompts = hidden.shape[0]
        self.forward_equivalents += prompts
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: self._backward(prompts))

    def _backward(self, prompts: int) -> None:
        self.forward_equivalents += 2 * prompts
