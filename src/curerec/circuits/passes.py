"""What all scorers share: pairs in batches, the margin, frozen weights, and what a scoring cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from curerec.errors import ModelError, PromptError
from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.fitting import prompts_that_fit
from curerec.recommender.fused import fused_activations
from curerec.recommender.lean import answer_only
from curerec.recommender.memory import keep_freed, ran_out
from curerec.recommender.runtime import train_checkpointed
from curerec.recommender.score import by_length, device_of, on, to_batch

MOVED = 1e-3  # logits: a smaller change of the margin is rounding
#: How to mend pairs that say nothing, for whoever runs a method or the command.
READ_NOTHING = (
    "The recommender hardly reads what the counterfactuals alter: train it for longer or on more data, or "
    "let more pairs be made to choose from (pair_pool of the method cure; --pairs and --corruption of "
    "curerec circuit)"
)


@dataclass(frozen=True)
class PairBatch:
    """Pairs on the model's device: ``clean``, ``corrupt`` ids [batch, pos], ``last``, ``label`` [batch]."""

    index: np.ndarray
    clean: torch.Tensor
    corrupt: torch.Tensor
    last: torch.Tensor
    label: torch.Tensor


@dataclass
class Cost:
    """What a scoring took.

    A backward pass counts as one forward pass: the weights are frozen, so it is one matrix product a layer
    where training needs two. A pass whose last layer is computed at the answer alone counts as a whole one;
    one that begins at a higher layer (:mod:`curerec.recommender.layers`) as the share of layers it computes;
    what is kept for it below (:mod:`curerec.recommender.lower`) counts when it is computed.

    Attributes:
        examples: pairs scored.
        forwards, backwards: passes, summed over examples.
        smallest_batch: pairs a pass at the end; smaller than asked for where memory ran out.
        halved: how often memory ran out and the batch was halved.
        peak_bytes: largest device memory in use since its mark was last set back, which is for who measures a
            whole command or cell to do and not for one pass among others; None on a CPU.
    """

    examples: int = 0
    forwards: int | float = 0
    backwards: int | float = 0
    smallest_batch: int = 0
    halved: int = 0
    peak_bytes: int | None = None

    @property
    def forward_equivalents(self) -> float:
        """Passes per example."""
        return (self.forwards + self.backwards) / max(self.examples, 1)

    def with_more(self, more: Cost) -> Cost:
        """What two scorings of different pairs took together."""
        peaks = [c.peak_bytes for c in (self, more) if c.peak_bytes is not None]
        return Cost(
            examples=self.examples + more.examples,
            forwards=self.forwards + more.forwards,
            backwards=self.backwards + more.backwards,
            smallest_batch=min(self.smallest_batch, more.smallest_batch),
            halved=self.halved + more.halved,
            peak_bytes=max(peaks, default=None),
        )

    def add(self, more: Cost) -> None:
        """Take in what further passes over the same pairs took."""
        both = self.with_more(more) if self.examples else more
        self.__dict__.update(replace(both, examples=more.examples).__dict__)

    def notes(self, doing: str = "") -> tuple[str, ...]:
        """What a reader should be told; ``doing``: what was done meanwhile, such as `` while judging``."""
        if not self.halved:
            return ()
        size = self.smallest_batch
        return (f"memory ran out {self.halved} time(s){doing}; went on with {size} pairs a pass",)


@dataclass(frozen=True)
class Scores:
    """Scores of all modules, per example.

    Attributes:
        names: heads and MLPs, layer by layer.
        values: float32 [n, modules] (float64 of a float64 model); negative where the module supports the
            answer, since a score is the change of the margin when the module is patched.
        embedding: the same of the embedding output, [n]; None where the scorer has none.
        scorer: its name.
        cost: passes and memory.
    """

    names: tuple[str, ...]
    values: np.ndarray
    embedding: np.ndarray | None
    scorer: str
    cost: Cost = field(default_factory=Cost)

    def among(self, names: Collection[str]) -> Scores:
        """Those of some modules alone, in the order in which they stand."""
        places = [k for k, name in enumerate(self.names) if name in names]
        values = np.ascontiguousarray(self.values[:, places])
        return replace(self, names=tuple(self.names[k] for k in places), values=values)


Scorer = Callable[..., Scores]


def margin(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """m(e) = (2y - 1)(z_yes - z_no), [batch]."""
    return (2 * label - 1) * (logits[:, 1] - logits[:, 0])


def numpy_type(model: Any) -> Any:
    """Precision of a model's scores: float32, or float64 of a model in double precision."""
    return np.float64 if next(model.parameters()).dtype == torch.float64 else np.float32


def check_aligned(clean: Prompts, corrupt: Prompts) -> None:
    """Refuse pairs whose positions do not align.

    Raises:
        PromptError: no pairs, or a pair of unequal lengths.
    """
    if len(clean) == 0 or len(clean) != len(corrupt):
        raise PromptError(
            "the list of pairs is empty or uneven", where="circuit", mend="Pass n clean, n corrupt"
        )
    if not np.array_equal(clean.lengths, corrupt.lengths):
        first = int(np.flatnonzero(clean.lengths != corrupt.lengths)[0])
        raise PromptError(
            f"pair {first + 1} has {clean.lengths[first]} clean and {corrupt.lengths[first]} corrupt tokens",
            where="circuit",
            mend="Use replacements with the same number of tokens",
        )


def check_halves(clean: Prompts) -> None:
    """Refuse pairs that cannot be halved.

    Raises:
        PromptError: fewer than two pairs.
    """
    if len(clean) < 2:
        raise PromptError(
            "fewer than two pairs", where="circuit", mend="One half of the pairs ranks, one judges"
        )


def each_part(
    model: Any,
    prompts: Prompts,
    batch_size: int,
    work: Callable[[np.ndarray], None],
    cost: Cost | None = None,
    *,
    what: str = "one prompt",
) -> Cost:
    """Call ``work`` on all prompts in batches, longest first; where memory runs out, with half the batch.

    Args:
        model: gives the device.
        prompts: [n].
        batch_size: prompts a pass.
        work: told which prompts, int64 [batch]; must write its result rather than add to one, since it may be
            called again with a part of the same prompts.
        cost: to be filled; its passes are counted by ``work``.
        what: one of them, for the message.

    Raises:
        ModelError: a single prompt does not fit in memory, or a batch where all processes must make the same
            passes.
    """
    device = device_of(model)
    cost = cost or Cost()
    cost.examples, cost.smallest_batch = len(prompts), min(batch_size, len(prompts))
    if device.type == "cpu":
        keep_freed()
        if torch.is_grad_enabled():  # nobody says here that memory ran out; a pair is two prompts
            most = prompts_that_fit(model, int(prompts.lengths.max(initial=1)))
            batch_size = min(batch_size, max(1, most // 2))
    todo = list(by_length(prompts, batch_size))[::-1]
    while todo:
        index = todo.pop()
        if len(index) > cost.smallest_batch:  # memory ran out on a batch before: do not try this size again
            todo += np.array_split(index, -(-len(index) // cost.smallest_batch))[::-1]
            continue
        counted = cost.forwards, cost.backwards
        try:
            work(index)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if len(index) == 1:
                raise ModelError(
                    f"{what} does not fit in memory",
                    where="circuit",
                    mend="Use shorter prompts, a smaller model or a device with more memory",
                ) from None
            if parallel.in_step():  # half the batch here would leave the others waiting for passes
                raise ModelError(
                    f"{len(index)} at a time do not fit in memory, and all processes make the same passes",
                    where="circuit",
                    mend="Take fewer at a time (batch_size), or start fewer processes on a device",
                ) from None
            cost.forwards, cost.backwards = counted
            cost.smallest_batch, cost.halved = len(index) // 2, cost.halved + 1
            todo.append(index)
        if cost.halved and device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cuda":
        cost.peak_bytes = torch.cuda.max_memory_allocated(device)
    return cost


def each_batch(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    batch_size: int,
    work: Callable[[PairBatch], None],
    cost: Cost | None = None,
) -> Cost:
    """Call ``work`` on all pairs, batch by batch, as :func:`each_part` does on prompts.

    Args:
        model: gives the device.
        clean, corrupt: aligned prompts, [n].
        batch_size: pairs a pass.
        work: told a batch; must write its result rather than add to one.
        cost: to be filled; its passes are counted by ``work``.

    Raises:
        PromptError: pairs are missing or do not align.
        ModelError: a single pair does not fit in memory.
    """
    check_aligned(clean, corrupt)
    device = device_of(model)

    def on_device(index: np.ndarray) -> None:
        ids, last = to_batch(clean, index, device)
        other, _ = to_batch(corrupt, index, device)
        label = on(device, clean.label[index].astype(np.int64))
        work(PairBatch(index, ids, other, last, label))

    return each_part(model, clean, batch_size, on_device, cost, what="one pair of prompts")


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """All parameters frozen, dropout off and activation functions fused inside; afterwards all as it was.

    The embedding output is then the only gradient leaf, and no pass computes a weight gradient. Layers with
    gradient checkpointing keep it: they save memory in training mode alone, so they themselves are in that
    mode inside; none of their parts is.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    train_checkpointed(model)
    for p, _ in flags:
        p.requires_grad_(False)
    try:
        with fused_activations(model):
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
        for m, mode in modes:
            m.training = mode


def at_answer(model: Any, last: torch.Tensor, lean: bool) -> AbstractContextManager[None]:
    """Passes inside compute of the last layer what the answer position needs.

    What is recorded of that layer is then [batch, 1, ...]: at other positions its heads and its MLP have no
    gradient, and a patch there changes nothing that is read.

    Args:
        model: decoder.
        last: int64 [batch], answer positions.
        lean: whether it may be, by :func:`curerec.recommender.lean.can_be_lean` before anything listens; a
            model of one layer is recorded where that layer is cut, so it may not.
    """
    return answer_only(model, last) if lean else nullcontext()
