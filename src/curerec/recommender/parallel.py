"""Several processes work on one model: started by ``accelerate launch``, which says how many and how.

Training hands its model to the library that wraps it (:class:`Team`). An unlearning request is carried out by
all processes step by step alike, and only its passes over many prompts are shared out (:func:`together`).
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from curerec.errors import ConfigError
from curerec.recommender.families import family_of

#: How long processes wait for each other. One alone scores the training examples and writes the files, which
#: for a large model takes longer than the ten minutes after which torch would end the others.
PATIENCE = datetime.timedelta(hours=24)
#: Parameters of bitsandbytes: what FSDP makes anew of one has lost how its bits are to be read.
FEW_BITS = ("Params4bit", "Int8Params")


def count() -> int:
    """Number of processes that were started together; 1: this one alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def with_fsdp() -> bool:
    """Whether several processes were started with FSDP: each is to hold a part of the parameters."""
    return count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def wait() -> None:
    """Wait here until all processes have come here."""
    if count() > 1:
        joined().wait_for_everyone()


_parts_at_exit = False


def joined() -> Any:
    """The processes that were started together, as ``accelerate`` sees them; the first call joins them."""
    from accelerate import PartialState

    global _parts_at_exit
    # It must be told: left to itself it joins GPUs alone, and each process on CPUs would take itself for all.
    state = PartialState(cpu=place().type == "cpu", timeout=PATIENCE)
    if count() > 1 and not _parts_at_exit:
        _parts_at_exit = True
        atexit.register(_part_from_others)
    return state


def _part_from_others() -> None:
    """Part from the others before the interpreter ends.

    Threads of gloo that are still there then end the process by a signal now and then, after all work was
    done, and the launcher calls that a failure (PyTorch's issues 28126 and 190489). NCCL only warns, and
    parting may wait there for what a process that failed never sent.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def place() -> torch.device:
    """Where this process computes: its own GPU where there are any, else the CPU."""
    if not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return torch.device("cpu")
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if count() > 1 else torch.device("cuda")
    )


_together = False
_in_step = False


def keep_in_step() -> None:
    """From here on all processes make the same passes, in number and order: weights are put together in each.

    Batches of a step are still shared out, in trainings (:class:`Team`) as in updates; passes over many
    prompts, whose batches may differ in number, are not.
    """
    global _in_step
    _in_step = True


def in_step() -> bool:
    """Whether all processes must make the same passes."""
    return _in_step


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, passes over many prompts are shared out over the processes, and their results joined.

    All processes must come here, and to the same passes in the same order: each does what the others do, from
    the same seed. With one process nothing is different.
    """
    global _together
    before = _together
    if count() > 1:
        joined()
        _together = True
    try:
        yield
    finally:
        _together = before


def sharing() -> bool:
    """Whether passes over many prompts are shared out here and now."""
    return _together and not _in_step


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process does its share by itself: what it calls is not shared out once more."""
    global _together
    before, _together = _together, False
    try:
        yield
    finally:
        _together = before


def share(n: int) -> np.ndarray:
    """Which of n things this process does, int [m]: a part of them in order, all where nothing is shared."""
    index = np.arange(n)
    return np.array_split(index, count())[int(os.environ.get("RANK", "0"))] if _together else index


def summed(tensors: Sequence[torch.Tensor]) -> None:
    """Add up tensors over the processes, in place; all end with the same bits."""
    if not _together or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    torch.distributed.all_reduce(flat)
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(part.view_as(t))


def same(tensors: Sequence[torch.Tensor]) -> None:
    """Give all processes the first one's values of some tensors, in place.

    Processes that take the same steps each by itself drift apart: sums that a GPU makes in any order round
    otherwise in each.

    Args:
        tensors: whole in each process, on its device.
    """
    if not _together:
        return
    with torch.no_grad():
        for t in tensors:
            found = t.detach().clone().contiguous()
            torch.distributed.broadcast(found.view(-1).view(torch.uint8), 0)  # of any type, on any backend
            t.copy_(found)


def agreed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers that processes decide by, as the first one has them, so that all decide alike.

    Answers that each process computes by itself may round otherwise in each: by a number that lies at its
    limit one would end its steps while the others wait for it in the next.

    Args:
        numbers: by name, the same names in the same order in all processes.
    """
    if not _together:
        return dict(numbers)
    told = torch.tensor([*numbers.values()], dtype=torch.float64, device=place())
    same([told])
    return dict(zip(numbers, told.tolist(), strict=True))


def as_first(x: np.ndarray) -> np.ndarray:
    """An array that each process has computed by itself, as the first one has it.

    For what processes choose by: of circuits or groups that differ each would make steps of its own, and wait
    for passes that the others do not make.

    Args:
        x: of the same shape in all.
    """
    if not _together:
        return x
    told = torch.from_numpy(np.ascontiguousarray(x)).clone().to(place())
    same([told])
    return told.cpu().numpy()


def by_rows(n: int, compute: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """An array computed row by row, each process its share.

    Args:
        n: rows, at least 1.
        compute: given the indices of some rows, [m]: those rows, [m, ...].

    Returns:
        All rows, in all processes.
    """
    if not _together:
        return compute(np.arange(n))
    mine = share(n)
    with alone():  # a process without rows computes one for its shape
        rows = compute(mine if len(mine) else np.arange(1))
    out = torch.zeros((n, *rows.shape[1:]), dtype=torch.from_numpy(rows).dtype)
    if len(mine):
        out[torch.from_numpy(mine)] = torch.from_numpy(rows)
    out = out.to(place())
    torch.distributed.all_reduce(out)
    return out.cpu().numpy()


def gradient(
    loss: Callable[[np.ndarray], torch.Tensor],
    n: int,
    params: Sequence[torch.nn.Parameter],
    *,
    at_a_time: int | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Gradient of a mean over a batch, and that mean, each process passing its share of the batch.

    Args:
        loss: given places in the batch, int [m]: the mean over them.
        n: size of the batch.
        params: with ``requires_grad``.
        at_a_time: of the batch, where it does not fit in memory whole; None: all of it.
    """
    mine = share(n)
    if at_a_time is None or len(mine) <= at_a_time:
        value = loss(mine if len(mine) else np.arange(1))
        found = list(torch.autograd.grad(value, params))
        value = value.detach()
    else:
        found, value = [torch.zeros_like(p) for p in params], torch.zeros(())
        for part in np.array_split(mine, -(-len(mine) // at_a_time)):
            of_part = loss(part) * (len(part) / len(mine))
            for total, g in zip(found, torch.autograd.grad(of_part, params), strict=True):
                total.add_(g)
            value = value.to(of_part) + of_part.detach()
    if _together:
        parts = [t * (len(mine) / n) for t in (*found, value)]
        summed(parts)
        found, value = parts[:-1], parts[-1]
    return found, value


class _Answering(torch.nn.Module):
    """The two answer logits as a module's output: what the libraries wrap is ``forward``."""

    def __init__(self, model: Any, answers: tuple[int, int], lean: bool) -> None:
        super().__init__()
        self.model, self.answers, self.lean = model, answers, lean

    def forward(self, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        from curerec.recommender.score import answer_logits  # which shares its passes out by this module

        return answer_logits(self.model, ids, last, self.answers, lean=self.lean)


def _sharded(answering: _Answering, device: torch.device) -> Any:
    """FSDP2, on CPUs and GPUs alike: layer by layer, the rest as one; each moves to the device to be cut."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (count(),))
    for layer in family_of(answering.model).layer_list(answering.model):
        fully_shard(layer, mesh=mesh)
    return fully_shard(answering, mesh=mesh)


def _over_the_adapter(answering: _Answering) -> Any:
    """DDP over what is trained; it is told to leave what is frozen, of which each process holds a part."""
    from torch.nn.parallel import DistributedDataParallel

    # FSDP2 has each product by itself and leaves what is outside of them, the adapter, to whoever trains it.
    frozen = [name for name, p in answering.named_parameters() if not p.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(answering, frozen)
    return DistributedDataParallel(answering)


class Team:
    """One model trained by all processes, each on its share of every batch.

    Gradients are summed over the processes, so the steps are those of one process with the whole batch. Where
    FSDP was asked for the parameters are shared out, too: by torch's FSDP2, whatever else ``accelerate`` was
    told about FSDP and precision. A base that is in parts already (:mod:`.spread`) stays so, its adapter is
    whole in each process; any other model is cut for the steps and whole again after them.

    Args:
        model: parameters with ``requires_grad`` are trained; the same in all processes.
        answers: token ids of (no, yes).

    Raises:
        ConfigError: parameters in few bits are to be shared out.

    Attributes:
        inner: the model that is trained, for who sets up how it computes: the given one or, where it is cut
            for the steps, a copy of it.
    """

    def __init__(self, model: Any, answers: tuple[int, int]) -> None:
        from accelerate import Accelerator

        from curerec.recommender.spread import has_spread  # which asks for this module

        self.model = model
        spread = has_spread(model)
        self.sharded = with_fsdp() and not spread
        if self.sharded and any(type(p).__name__ in FEW_BITS for p in model.parameters()):
            raise ConfigError(
                "a base in few bits cannot be shared out over processes",
                where="--use_fsdp",
                mend="Start training without --use_fsdp, or set model.base_bits: 16",
            )
        joined()  # before the accelerator would, with less patience
        # Precision is the recipe's, whatever accelerate's own configuration on this machine says.
        self.accelerator = Accelerator(mixed_precision="no", dynamo_backend="no")
        here = next(model.parameters()).device
        self.device = here if here.type == "cpu" else self.accelerator.device
        if spread:
            self.inner = model
            # accelerate wraps in DDP only where FSDP was not asked for.
            self.wrapped = _over_the_adapter(_Answering(model, answers, lean=True))
            return
        # The copy is cut in main memory: no GPU has room for two. The model gets the trained weights back.
        self.inner = copy.deepcopy(model.to("cpu")) if self.sharded else model.to(self.device)
        answering = _Answering(self.inner, answers, lean=True)
        # accelerate leaves FSDP out on CPUs, and on GPUs takes a model only together with its optimiser.
        self.wrapped = (
            _sharded(answering, self.device) if self.sharded else self.accelerator.prepare_model(answering)
        )

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
