"""D_f as an update with two losses sees it: theta_o's answers, weights of examples, gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from curerec.circuits.path import part_of_the_way
from curerec.methods.losses import AIMS, ForgetLoss, forget_loss
from curerec.methods.task import Task
from curerec.methods.teachers import targets
from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.runtime import RuntimeConfig
from curerec.recommender.score import answer_logits, at_a_time, by_length, device_of, on, score, to_batch
from curerec.recommender.units import units_of

TINY = 1e-6  # bounds the weights where theta_o is sure of every example with one answer
PATH = (0.0, 0.5, 1.0)  # points between base and fine-tuned weights at which ``rewind`` takes residuals


class ForgetConfig(Protocol):
    """What of a configuration the forget loss depends on."""

    @property
    def forget_loss(self) -> ForgetLoss: ...
    @property
    def beta(self) -> float: ...
    @property
    def balance(self) -> bool: ...
    @property
    def alpha(self) -> float | None: ...


class ForgetObjective:
    """The forget loss of a request.

    Args:
        task: the request.
        config: loss and weighting.

    Attributes:
        prompts: of D_f, [n].
        label: int64 [n].
        original: answer logits of theta_o, [n, 2].
        weight: of each example in the loss, [n]; losses with a target have none.
        target: answer logits to aim for, [n, 2]; None of a loss without a target.
        at_original: gradient at theta_o by parameter name, of all of D_f or of a sample; None until
            :func:`curerec.methods.cure.gradient_share.at_original` has taken it.
    """

    def __init__(self, task: Task, config: ForgetConfig) -> None:
        self.task, self.config = task, config
        self.device = device_of(task.original.model)
        self.prompts = task.forget_prompts
        self.original = torch.from_numpy(task.forget_original).to(self.device)
        self.label = torch.from_numpy(self.prompts.label.astype(np.int64)).to(self.device)
        name = config.forget_loss
        self.target = None if name not in AIMS else targets(task, name, alpha=config.alpha)
        self.weight = self._weights()
        self.at_original: dict[str, torch.Tensor] | None = None

    @classmethod
    def of(cls, task: Task, config: ForgetConfig) -> ForgetObjective:
        """The objective of a request, made once: contributions and update share it."""
        key = ("forget objective", config.forget_loss, config.beta, config.balance, config.alpha)
        if key not in task.shared:
            task.shared[key] = cls(task, config)
        found: ForgetObjective = task.shared[key]
        return found

    def loss(self, model: Any, index: np.ndarray) -> torch.Tensor:
        """Mean forget loss of examples.

        Args:
            model: being unlearned.
            index: of the examples, int [batch].
        """
        ids, last = to_batch(self.prompts, index, self.device)
        use = self.task.runtime
        logits = answer_logits(model, ids, last, self.task.answers, lean=True, runtime=use)
        at = on(self.device, np.asarray(index, np.int64))  # an array as index would be copied, and waited for
        return forget_loss(
            self.config.forget_loss,
            logits,
            self.label.index_select(0, at),
            self.original.index_select(0, at),
            beta=self.config.beta,
            weight=self.weight.index_select(0, at),
            target=None if self.target is None else self.target.index_select(0, at),
        )

    def gradient(
        self,
        model: Any,
        params: Sequence[torch.nn.Parameter],
        index: np.ndarray | None = None,
        *,
        batch_size: int = 128,
    ) -> tuple[list[torch.Tensor], float]:
        """Gradient of the mean forget loss over many examples, and that mean.

        The push of single batches of D_f scatters by more than it points: with all of D_f in it the steps of
        an update need only the retain side's batches, and what is handed back is nearer to a retrain.

        Args:
            model: being unlearned.
            params: with ``requires_grad``.
            index: of the examples, int [n]; None: all of D_f.
            batch_size: prompts a pass, of like length; on a CPU fewer where they are long.
        """
        index = np.arange(len(self.prompts)) if index is None else index
        part = self.prompts.take(index)
        return mean_gradient(
            lambda k: self.loss(model, index[k]), part, model, params,
            batch_size=batch_size, runtime=self.task.runtime,
        )  # fmt: skip

    def _weights(self) -> torch.Tensor:
        """Weight of each forget example, [n].

        ``rewind``: its residual averaged over the base, the halfway and the fine-tuned weights; otherwise 1.
        A loss with a target has none: the answers to aim for say how far each example is to move.
        With ``balance`` both answers get the same total push at the start; without it forgetting moves P(yes)
        towards the rarer answer, which is not what the users were remembered by. Of a request whose examples
        have one answer alone that one gets all of it.
        """
        task, label = self.task, self.label

        def residual(logits: torch.Tensor) -> torch.Tensor:
            # Of the other answer: 1 less that of this one is 0 from a margin of 17 on.
            return logits.softmax(-1).gather(1, 1 - label[:, None])[:, 0]

        push = residual(self.original)  # of the other losses' first step
        weight = torch.ones_like(push)
        if self.target is not None:
            return weight
        if self.config.forget_loss == "rewind":
            model = task.original.model
            units = units_of(model, "projection")
            deltas = task.deltas(units)
            push = push + residual(torch.from_numpy(task.forget_base).to(self.original))
            for alpha in PATH[1:-1]:
                with part_of_the_way(model, deltas, alpha) as (halfway, _):
                    earlier = torch.from_numpy(score(halfway, self.prompts, task.answers))
                push = push + residual(earlier.to(self.original))
            push = push / len(PATH)
            weight = push.clone()  # changed below, answer by answer, while `push` has to stay
        if self.config.balance:
            given = [mine for answer in (0, 1) if (mine := label == answer).any()]
            for mine in given:
                weight[mine] = weight[mine] / len(given) * push.sum() / push[mine].sum().clamp_min(TINY)
        return weight


def mean_gradient(
    loss: Callable[[np.ndarray], torch.Tensor],
    prompts: Prompts,
    model: Any,
    params: Sequence[torch.nn.Parameter],
    *,
    batch_size: int = 128,
    runtime: RuntimeConfig | None = None,
) -> tuple[list[torch.Tensor], float]:
    """Gradient of a mean loss over many prompts, and that mean; several processes share them out.

    Args:
        loss: given places of prompts, int [batch], their mean loss.
        prompts: [n].
        model: that the loss asks.
        params: of it, with ``requires_grad``.
        batch_size: prompts a pass, of like length; on a CPU fewer where they are long.
        runtime: what a pass of ``loss`` keeps, and where.
    """
    device = device_of(model)
    total = [torch.zeros_like(p) for p in params]
    mean = torch.zeros((), device=device)
    for batch in by_length(prompts, at_a_time(prompts, batch_size, device, model, runtime)):
        mine = batch[parallel.share(len(batch))]
        # A process without a part passes an example for nothing: all must take part in every pass.
        value = loss(mine if len(mine) else batch[:1]) * (len(mine) / len(prompts))
        for sum_, g in zip(total, torch.autograd.grad(value, params), strict=True):
            sum_.add_(g)
        mean += value.detach()
    parallel.summed([*total, mean])
    return total, float(mean)
