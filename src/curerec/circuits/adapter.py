"""Scorer ``adapter``: what fine-tuning stored in a unit is worth to a loss, per example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch.func import functional_call

from curerec.circuits.passes import Cost, each_part, frozen, margin
from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.lower import kept_below
from curerec.recommender.score import answer_logits, at_a_time, device_of, on, to_batch, wide
from curerec.recommender.units import Branch, Units

Deltas = dict[str, torch.Tensor]
Objective = Literal["loss", "margin"]


def weight_deltas(model: Any, base: Any, units: Units) -> Deltas:
    """W - W_base of every fully fine-tuned branch, on the model's device; empty with LoRA.

    Args:
        model: the fine-tuned model.
        base: state dict of the model before fine-tuning (any device).
        units: of the model.
    """
    state = dict(model.named_parameters(remove_duplicate=False))
    return {
        b.weight: (state[b.weight].detach() - base[b.weight].to(state[b.weight]))
        for b in units.branches
        if not b.factor
    }


def adapter_scores(
    model: Any,
    prompts: Prompts,
    answers: tuple[int, int],
    units: Units,
    deltas: Deltas,
    *,
    batch_size: int = 128,
    objective: Objective = "loss",
    cost: Cost | None = None,
) -> Float[np.ndarray, "n units"]:
    """First-order rise of each example's cross-entropy if a unit's change by fine-tuning were removed.

    LoRA: ``-sum(y_lora * dL/dy_lora)`` over the unit's outputs; full fine-tuning: ``-sum(dW * dL/dW)`` over
    its slice, both summed over positions. One forward and one backward pass score all units: the gradient at
    the output of a map times its delta output gives every row's score without a per-example weight gradient.

    Args:
        model: fine-tuned decoder; adapters that are merged are taken apart meanwhile.
        prompts: [n].
        answers: token ids of (no, yes).
        units: which rows belong together, [n_units].
        deltas: from :func:`weight_deltas`.
        batch_size: prompts a pass; halved where memory runs out.
        objective: ``margin`` scores the change of the margin instead of the loss: logits, negative where the
            unit helps.
        cost: to be filled.

    Returns:
        float32 [n, n_units] (float64 of a model in float64), nats: positive where the unit helps to predict
        the example.

    Raises:
        ModelError: a single prompt does not fit in memory.

    Source: METHOD section 3, scorer ``adapter``.
    Related: :func:`curerec.circuits.adapter_exact.exact_adapter`, which measures it.
    """
    device = device_of(model)
    kind = wide(next(model.parameters()).detach().flatten()[:1]).dtype
    out = np.zeros((len(prompts), len(units.names)), np.float64 if kind == torch.float64 else np.float32)
    label = torch.from_numpy(prompts.label.astype(np.int64)).to(device)
    modules = dict(model.named_modules())
    decoder = family_of(model).decoder(model)
    cap = getattr(model.config, "final_logit_softcapping", None)
    owners = [torch.from_numpy(b.unit).to(device) for b in units.branches]
    spent = cost or Cost()

    def work(index: np.ndarray) -> None:
        tape: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        states: list[torch.Tensor] = []
        handles = [decoder.register_forward_hook(lambda m, a, y, seen=states: seen.append(y[0].detach()))]
        handles += [
            _watch(modules[b.module], b, k, tape, len(index))
            for k, b in enumerate(units.branches)
            if b.kind not in ("head", "head_bias")
        ]
        try:
            ids, last = to_batch(prompts, index, device)
            # Below the lowest adapter nothing is scored: gradients need not get there.
            with kept_below(model, ids, last, leaf=True) as above:
                embeds = None
                if above is None:
                    embeds = model.get_input_embeddings()(ids)
                    if not embeds.requires_grad:
                        embeds.requires_grad_()
                logits = answer_logits(model, ids, last, answers, inputs_embeds=embeds)
        finally:
            for handle in handles:
                handle.remove()
        wanted = label.index_select(0, on(device, index))
        if objective == "margin":
            loss = margin(logits, wanted).sum()
        else:
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        *grads, g_logits = torch.autograd.grad(loss, [*(y for _, _, y in tape), logits])
        if cap:
            g_logits = g_logits * (1 - (logits / cap) ** 2)
        total = torch.zeros(len(index), len(units.names), device=device, dtype=kind)
        with torch.no_grad():
            for (k, x, y), g in zip(tape, grads, strict=True):
                branch = units.branches[k]
                _accumulate(total, branch, owners[k], x, y, wide(g), deltas, modules[branch.module])
            for branch, owner in zip(units.branches, owners, strict=True):
                if branch.kind in ("head", "head_bias"):
                    state = states[0][torch.arange(len(last), device=device), last]
                    _accumulate_head(total, branch, owner, state, g_logits, deltas, answers)
        out[index] = total.cpu().numpy()
        spent.forwards += len(index)
        spent.backwards += len(index)

    with frozen(model), unmerged(model):
        each_part(model, prompts, at_a_time(prompts, batch_size, device), work, spent)
    return out


@contextmanager
def unmerged(model: Any) -> Iterator[None]:
    """LoRA's factors as branches of their own inside, merged again afterwards where they were."""
    merged = [m for m in model.modules() if getattr(m, "merged", False) and hasattr(m, "unmerge")]
    # Taking a product off and adding it again rounds: the weights are put back as they were.
    before = [(m, list(m.merged_adapters), m.get_base_layer().weight.detach().clone()) for m in merged]
    for m in merged:
        m.unmerge()
    try:
        yield
    finally:
        for m, adapters, weight in before:
            m.merge(adapter_names=adapters)
            with torch.no_grad():
                m.get_base_layer().weight.copy_(weight)


def _watch(module: Any, branch: Branch, position: int, tape: list[Any], batch: int) -> Any:
    """Note input and output of a map while the model runs; of a LoRA branch, of the factor with units."""
    if branch.factor is not None:
        module = next(iter((module.lora_B if ".lora_B." in branch.weight else module.lora_A).values()))

    def hook(mod: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if branch.kind == "positions":  # one row for the whole batch: its gradient would be the batch's sum
            output = output.expand(batch, *output.shape[1:]).clone()
        if not output.requires_grad:
            output.requires_grad_()
        tape.append((position, args[0].detach(), output))
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
    module: Any,
) -> None:
    """Add a branch's scores, its input ``x``, output ``y`` and gradient ``g`` at the output given."""
    if branch.kind in ("embedding", "positions"):
        # Linear in the table: also what the family multiplies rows by (Gemma's sqrt of the width) is in it.
        changed = functional_call(module, {"weight": deltas[branch.weight]}, (x,))
        worth = -(wide(changed) * g).sum(-1)  # [batch, pos]
        total.scatter_add_(1, owner[x].expand_as(worth), worth)
        return
    if branch.kind == "norm":
        # Affine in its weight whatever the family's formula (Gemma's is 1 + weight): what a weight of one
        # adds to y is the normed input, and the delta scales it; exact also where the weight is 0.
        ends = [{n: torch.full_like(wide(p), v) for n, p in module.named_parameters()} for v in (1, 0)]
        if "bias" in ends[0]:
            ends[0]["bias"].zero_()
        one, none = (functional_call(module, end, (wide(x),)) for end in ends)
        worth = -((one - none) * wide(deltas[branch.weight]) * g).flatten(1, -2).sum(1)
    elif branch.kind == "bias":
        worth = -(wide(deltas[branch.weight]) * g).flatten(1, -2).sum(1)  # a norm of heads has one axis more
    elif branch.factor is not None and not branch.inputs:
        worth = -(wide(y) * g).sum(1)
    else:
        lora = branch.factor is not None  # here with inputs: x is the branch's input, g the gradient at A x
        delta = wide(next(iter(module.lora_A.values())).weight if lora else deltas[branch.weight])
        delta = delta.T if branch.transposed else delta
        worth = -(wide(x) * (g @ delta)).sum(1) if branch.inputs else -((wide(x) @ delta.T) * g).sum(1)
    total.index_add_(1, owner, worth)


def _accumulate_head(
    total: torch.Tensor,
    branch: Branch,
    owner: torch.Tensor,
    state: torch.Tensor,
    g_logits: torch.Tensor,
    deltas: Deltas,
    answers: tuple[int, int],
) -> None:
    """Add the scores of the two answer rows of the output embedding, the only ones that are read."""
    rows = torch.tensor(answers, device=total.device)
    delta = wide(deltas[branch.weight][rows])
    worth = -(wide(state) @ delta.T if branch.kind == "head" else delta) * g_logits
    total.index_add_(1, owner[rows], worth)
