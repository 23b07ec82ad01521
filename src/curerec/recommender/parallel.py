"""Several processes train one model: started by ``accelerate launch``, which says how many and how."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from curerec.recommender.families import family_of
from curerec.recommender.score import answer_logits, device_of


def count() -> int:
    """Number of processes that were started together; 1: this one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Wait here until all processes have come here."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


class _Answering(torch.nn.Module):
    """The two answer logits as a module's output: what the libraries wrap is ``forward``."""

    def __init__(self, model: Any, answers: tuple[int, int], lean: bool) -> None:
        super().__init__()
        self.model, self.answers, self.lean = model, answers, lean

    def forward(self, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        return answer_logits(self.model, ids, last, self.answers, lean=self.lean)


def _sharded(answering: _Answering) -> Any:
    """FSDP2 on CPUs: layer by layer, the rest as one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (count(),))
    for layer in family_of(answering.model).layer_list(answering.model):
        fully_shard(layer, mesh=mesh)
    return fully_shard(answering, mesh=mesh)


class Team:
    """One model trained by all processes, each on its share of every batch.

    Gradients are summed over the processes, so the steps are those of one process with the whole batch. With
    ``accelerate``'s FSDP the parameters are shared out, too.

    Args:
        model: parameters with ``requires_grad`` are trained; the same in all processes.
        answers: token ids of (no, yes).
    """

    def __init__(self, model: Any, answers: tuple[int, int]) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedType

        self.model = model
        self.accelerator = Accelerator()
        wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        # accelerate leaves FSDP out on CPUs; torch does not.
        on_cpus = wanted and self.accelerator.distributed_type == DistributedType.MULTI_CPU
        self.sharded = on_cpus or self.accelerator.distributed_type == DistributedType.FSDP
        self.device = device_of(model) if device_of(model).type == "cpu" else self.accelerator.device
        inner = copy.deepcopy(model) if self.sharded else model.to(self.device)
        if self.sharded and not on_cpus:
            model.to("cpu")  # room for the copy; it gets the trained weights back
            plugin = self.accelerator.state.fsdp_plugin
            plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or list(
                getattr(model, "_no_split_modules", None) or []
            )
        answering = _Answering(inner, answers, lean=True)
        self.wrapped = _sharded(answering) if on_cpus else self.accelerator.prepare_model(answering)

    def params(self) -> list[torch.nn.Parameter]:
        """What is trained, as the optimiser is to see it."""
        return [p for p in self.wrapped.parameters() if p.requires_grad]

    def share(self, index: np.ndarray) -> tuple[np.ndarray, float]:
        """This process's part of a batch, and the factor of its mean loss.

        A process whose part is empty takes an example with the factor 0: all must take part in every pass.
        """
        mine = index[self.accelerator.process_index :: self.accelerator.num_processes]
        # The libraries take the mean of the gradients over processes; the batch's is wanted.
        factor = len(mine) * self.accelerator.num_processes / len(index)
        return (mine if len(mine) else index[:1]), factor

    def logits(self, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Answer logits of this process's share, [share, 2]."""
        return self.wrapped(ids, last)

    def finish(self, params: Sequence[torch.nn.Parameter]) -> None:
        """Put the trained weights into the model that was given, in all processes."""
        if not self.sharded:
            return
        targets = [p for p in self.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for target, p in zip(targets, params, strict=True):
                target.copy_(p.full_tensor() if hasattr(p, "full_tensor") else p)
        self.model.to(self.device)
