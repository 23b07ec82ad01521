"""Forget and retain losses on the two answer logits."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

Aim = Literal["label_free", "teacher", "calibrated"]
ForgetLoss = Literal["npo", "grad_ascent", "rewind", Aim]
AIMS: tuple[Aim, ...] = get_args(Aim)


def npo(
    logits: Float[torch.Tensor, "batch 2"],
    label: Int[torch.Tensor, " batch"],
    original: Float[torch.Tensor, "batch 2"],
    *,
    beta: float = 0.5,
    weight: Float[torch.Tensor, " batch"] | None = None,
) -> Float[torch.Tensor, ""]:
    """Negative preference optimisation: ``-(2/beta) log sigmoid(-beta (log p - log p_o))``, mean, nats.

    Args:
        logits: of the model being unlearned, [batch, 2].
        label: int64 [batch], the answers to forget.
        original: logits of theta_o, [batch, 2].
        beta: > 0; towards 0 the loss's gradient becomes that of gradient ascent.
        weight: of the examples, [batch].

    Source: Zhang et al. 2024, arXiv 2404.05868, eq. 3.
    """
    logp = logits.log_softmax(-1).gather(1, label[:, None])[:, 0]
    logp_o = original.log_softmax(-1).gather(1, label[:, None])[:, 0]
    loss = -(2 / beta) * F.logsigmoid(-beta * (logp - logp_o))
    return (loss if weight is None else loss * weight).mean()


def grad_ascent(
    logits: Float[torch.Tensor, "batch 2"],
    label: Int[torch.Tensor, " batch"],
    *,
    weight: Float[torch.Tensor, " batch"] | None = None,
) -> Float[torch.Tensor, ""]:
    """Minus the cross-entropy on the forget data, mean, nats."""
    loss = -F.cross_entropy(logits, label, reduction="none")
    return (loss if weight is None else loss * weight).mean()


def rewind(
    logits: Float[torch.Tensor, "batch 2"],
    label: Int[torch.Tensor, " batch"],
    *,
    weight: Float[torch.Tensor, " batch"],
) -> Float[torch.Tensor, ""]:
    """The margin towards the label, weighted by the push it got in training, mean, logit units.

    Fine-tuning raised an example's margin by steps proportional to its residual 1 - p(label) then: large
    at first, small once the example was learnt. Gradient ascent and NPO weigh examples by the residual at the
    end, and so push hardest where training pushed least; ``weight`` is the residual averaged along the path
    from the base to the fine-tuned weights.

    Args:
        logits: of the model being unlearned, [batch, 2].
        label: int64 [batch].
        weight: mean residual of each example along the path, [batch].

    Source: this project's own (docs/method.md has the measurement).
    """
    return (weight * (2 * label - 1) * (logits[:, 1] - logits[:, 0])).mean()


def forget_loss(
    name: ForgetLoss,
    logits: Float[torch.Tensor, "batch 2"],
    label: Int[torch.Tensor, " batch"],
    original: Float[torch.Tensor, "batch 2"],
    *,
    beta: float,
    weight: Float[torch.Tensor, " batch"] | None = None,
    target: Float[torch.Tensor, "batch 2"] | None = None,
) -> Float[torch.Tensor, ""]:
    """The forget loss of a name; arguments as in :func:`npo`.

    Those of :data:`AIMS` are ``KL(target || model)``, mean, nats; ``target``: logits to aim for, [batch, 2],
    of :mod:`curerec.methods.teachers`. Only they need it, and nothing else is asked of it.
    """
    if name == "rewind":
        return rewind(logits, label, weight=torch.ones_like(logits[:, 0]) if weight is None else weight)
    if name == "npo":
        return npo(logits, label, original, beta=beta, weight=weight)
    if name == "grad_ascent":
        return grad_ascent(logits, label, weight=weight)
    assert target is not None
    return kl_to(logits, target)


def kl_to(
    logits: Float[torch.Tensor, "batch 2"], target: Float[torch.Tensor, "batch 2"]
) -> Float[torch.Tensor, ""]:
    """KL(target || model) over {No, Yes}, mean, nats.

    Args:
        logits: of the model, [batch, 2].
        target: logits of the reference, [batch, 2].
    """
    return F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean")
