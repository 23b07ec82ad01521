"""Scorer ``adapter``: what fine-tuning stored in a unit is worth to a loss, per example."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from curerec.prompts.encoding import Prompts
from curerec.recommender.score import answer_logits, by_length, device_of, to_batch
from curerec.recommender.units import Branch, Units

Deltas = dict[str, torch.Tensor]


def weight_deltas(model: Any, base: Any, units: Units) -> Deltas:
    """W - W_base of every fully fine-tuned branch, on the model's device; empty with LoRA.

    Args:
        model: the fine-tuned model.
        base: state dict of the model before fine-tuning (any device).
        units: of the model.
    """
    state = dict(model.named_parameters(remove_duplicate=False))
    return {
        b.weight: (state[b.weight].detach() - base[b.weight].to(state[b.weight])) for b in units.branches if not b.factor
    }


def adapter_scores(
    model: Any,
    prompts: Prompts,
    answers: tuple[int, int],
    units: Units,
    deltas: Deltas,
    *,
    batch_size: int = 128,
) -> np.ndarray:
    """First-order rise of each example's cross-entropy if a unit's change by fine-tuning were removed.

    LoRA: ``-sum(y_lora * dL/dy_lora)`` over the unit's outputs; full fine-tuning: ``-sum(dW * dL/dW)`` over its
    slice, both summed over positions. One forward and one backward pass score all units: the gradient at the
    output of a map times its delta output gives every row's score without a per-example weight gradient.

    Args:
        model: fine-tuned decoder.
        prompts: [n].
        answers: token ids of (no, yes).
        units: which rows belong together, [n_units].
        deltas: from :func:`weight_deltas`.
        batch_size: prompts a pass.

    Returns:
        float32 [n, n_units], nats: positive where the unit helps to predict the example.

    Source: METHOD section 3, scorer ``adapter``.
    """
    device = device_of(model)
    out = np.zeros((len(prompts), len(units.names)), np.float32)
    label = torch.from_numpy(prompts.label.astype(np.int64))
    modules = dict(model.named_modules())
    owner = {b.module: torch.from_numpy(b.unit).to(device) for b in units.branches}
    with _frozen(model):
        for index in by_length(prompts, batch_size):
            tape: list[tuple[Branch, torch.Tensor, torch.Tensor]] = []
            handles = [_watch(modules[b.module], b, tape) for b in units.branches]
            try:
                ids, last = to_batch(prompts, index, device)
                embeds = model.get_input_embeddings()(ids)
                if not embeds.requires_grad:
                    embeds.requires_grad_()
                logits = answer_logits(model, ids, last, answers, inputs_embeds=embeds)
            finally:
                for handle in handles:
                    handle.remove()
            loss = torch.nn.functional.cross_entropy(logits, label[index].to(device), reduction="sum")
            grads = torch.autograd.grad(loss, [y for _, _, y in tape])
            total = torch.zeros(len(index), len(units.names), device=device)
            for (branch, x, y), g in zip(tape, grads, strict=True):
                _accumulate(total, branch, owner[branch.module], x, y, g.float(), deltas, ids, modules)
            out[index] = total.cpu().numpy()
    return out


class _frozen:  # noqa: N801 - a context manager named like a verb
    """All parameters frozen inside, as they were afterwards; the embedding output is the gradient leaf."""

    def __init__(self, model: Any) -> None:
        self.flags = [(p, p.requires_grad) for p in model.parameters()]

    def __enter__(self) -> None:
        for p, _ in self.flags:
            p.requires_grad_(False)

    def __exit__(self, *exc: object) -> None:
        for p, flag in self.flags:
            p.requires_grad_(flag)


def _watch(module: Any, branch: Branch, tape: list[Any]) -> Any:
    """Note input and output of a map while the model runs."""
    if branch.factor is not None:
        module = next(iter(module.lora_B.values()))

    def hook(mod: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if not output.requires_grad:
            output.requires_grad_()
        tape.append((branch, args[0].detach(), output))
        return output

    return module.register_forward_hook(hook)


def _accumulate(
    total: torch.Tensor,
    branch: Branch,
    owner: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    g: torch.Tensor,
    deltas: Deltas,
    ids: torch.Tensor,
    modules: dict[str, Any],
) -> None:
    if branch.kind == "embedding":
        worth = -(deltas[branch.weight][ids].float() * g).sum(-1)  # [batch, pos]
        total.scatter_add_(1, owner[ids], worth)
        return
    if branch.kind == "norm":
        weight = modules[branch.module].weight.float()
        # y = weight * normed(x); removing the delta changes y by -delta * normed(x) = -delta / weight * y.
        ratio = deltas[branch.weight].float() / torch.where(weight.abs() < 1e-6, torch.ones_like(weight), weight)
        worth = -(ratio * y.detach().float() * g).sum(1)
    elif branch.factor is not None and branch.dim == 0:
        worth = -(y.detach().float() * g).sum(1)
    elif branch.factor is not None:
        raise NotImplementedError
    elif branch.dim == 0:
        worth = -((x.float() @ deltas[branch.weight].float().T) * g).sum(1)
    else:
        worth = -(x.float() * (g @ deltas[branch.weight].float())).sum(1)
    total.index_add_(1, owner, worth)
