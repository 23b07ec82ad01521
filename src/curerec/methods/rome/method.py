"""ROME: for every forgotten user one rank-one edit of an MLP's output matrix."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field

from curerec.methods.edits import (
    Merge,
    Uninformed,
    edits_of,
    layer_to_edit,
    mlp_output,
    plain,
    title_ends,
    transposed,
    uninformed,
)
from curerec.methods.loop import CLOSED, Update, outcome
from curerec.methods.losses import kl_to
from curerec.methods.rome.edit import Site, covariance, rank_one
from curerec.methods.stopping import Stopping, Watch
from curerec.methods.task import Task
from curerec.prompts.encoding import Prompts
from curerec.recommender import parallel
from curerec.recommender.copies import copied
from curerec.recommender.lora import PREFIX, factors_of, stacked, with_factors
from curerec.recommender.score import answer_logits, by_length, on, to_batch
from curerec.recommender.tune import TuneConfig, optimise
from curerec.records import Outcome

DEPTH = 17 / 48  # the layer of GPT-2 XL that ROME edits, as a share of its layers
SEARCH: dict[str, list[Any]] = {"answer": ["prior", "base"], "lr": [0.1, 0.5], "clamp": [1.0, 4.0]}


class RomeConfig(Stopping):
    """Site, value search and stopping."""

    layer: int | None = Field(None, ge=0, description="none: 17/48 of the depth, below the last layer")
    answer: Uninformed = Field("prior", description="what to answer instead")
    merge: Merge = Field("user", description="the prompts of a user, or about an item, make one edit")
    steps: int = Field(20, gt=0, description="of Adam towards the value")
    lr: float = Field(0.5, gt=0)
    weight_decay: float = Field(0.5, ge=0)
    clamp: float = Field(4.0, gt=0, description="longest change of the value, in lengths of the value")
    kl_weight: float = Field(
        0.0625, ge=0, description="of keeping retained prompts' answers under the change"
    )
    batch_size: int = Field(16, gt=0, description="prompts of an edit a pass, and of D_r beside them")
    covariance_size: int = Field(400, gt=0, description="retain prompts whose keys make the covariance")
    check_every: int = Field(4, gt=0, description="edits between looks at the membership gap")


def rome(task: Task, config: RomeConfig | None = None) -> Outcome:
    """Edit user after user until the membership gap closes.

    Args:
        task: the request.
        config: see :class:`RomeConfig`.

    Raises:
        ModelError: the model has not the layer that is to be edited, or its weights are packed.

    Source: Meng et al. 2022, arXiv 2202.05262, eq. 2 and 4.
    """
    config = config or RomeConfig()
    with task.clock.stage("prepare"):
        base = task.base_model() if config.answer == "base" else None
        layer = site_of(task.original.model, config.layer)
        watch = Watch(task, config)
        model = task.copy_of_model(whole=True).requires_grad_(False)
        site = Site(mlp_output(model, layer))
        edits = edits_of(task, config.merge)
        retain = task.encode(task.sample(task.retain, config.batch_size, 81))
    with task.clock.stage("covariance"):
        known = task.encode(task.sample(task.retain, config.covariance_size, 82))
        spread = covariance(model, site, known, config.batch_size)
    weight = plain(site.module).weight
    path = next(n for n, m in model.named_modules() if m is site.module)
    rng = np.random.default_rng([task.seed, 83])
    factors: list[tuple[torch.Tensor, torch.Tensor]] = []
    trace: list[dict[str, float]] = [{"step": 0, **watch.first}]
    kept, stop = 0, "every edit was made before the membership gap closed"
    with task.clock.stage("update") as advance:
        for k, rows in enumerate(edits, start=1):
            prompts = task.encode(task.forget.take(rows))
            target = uninformed(task, prompts, base)
            key, change, loss = value_change(task, model, site, prompts, target, retain, config, rng)
            left, right = rank_one(change, key, spread)
            product = torch.outer(left, right)
            with torch.no_grad():
                weight.add_((product.T if transposed(site.module) else product).to(weight))
            factors.append((left, right))
            advance(k, len(edits))
            if k % config.check_every and k != len(edits):
                continue
            seen = watch.look(edited(task.original.model, path, factors))  # as it would be handed back
            trace.append({"step": k, "loss": loss, **seen})
            if watch.harmed(seen):
                drop = f"validation AUC fell by more than {config.max_auc_drop:g}"
                stop = f"the utility guard: {drop}; the edits before are kept"
                break
            kept = k
            if watch.closed(seen):
                stop = CLOSED
                break
        new = edited(task.original.model, path, factors[:kept])
    lora = hasattr(new, "peft_config")
    done = Update(new.eval(), tuple(trace), stop, int(trace[-1]["step"]), weight.numel(), target=watch.target)
    details: dict[str, Any] = {"layer": layer, "edits": kept}
    if not lora:
        details["changed"] = (f"{path}.weight",)
    return outcome(task, "rome", done, **details)


def site_of(model: Any, layer: int | None) -> int:
    """The layer to edit; below the last, whose MLP at the title is read by no later attention.

    Raises:
        ModelError: the layer that is asked for is not below the last.
    """
    return layer_to_edit(model, layer, DEPTH, highest=-2, where="methods.rome.layer")


def value_change(
    task: Task,
    model: Any,
    site: Site,
    prompts: Prompts,
    target: torch.Tensor,
    retain: Prompts,
    config: RomeConfig,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """k*, v* - W k* and the last loss of one edit.

    k* is the mean key of all prompts at the last title token. v* is what the map would have to write there
    for the answers to be the target's, found by Adam: KL to the target, plus ``kl_weight`` of
    KL(edited || before) on retained prompts under the same change, plus weight decay, the change never longer
    than ``clamp`` values.

    Args:
        task, model: the request and the model as edited so far.
        site: the map.
        prompts: of the edit, [n]; a pass, and a step, is of ``config.batch_size`` of them at the most.
        target: logits, [n, 2].
        retain: prompts whose answers are to stay.
        config: of the search.
        rng: of :func:`dealt`.

    Returns:
        float32 [in], float32 [out], nats.

    Source: Meng et al. 2022, arXiv 2202.05262, eq. 3 and 4.
    """
    device = site.device
    there = to_batch(retain, np.arange(len(retain)), device)
    ends, other_ends = title_ends(prompts), on(device, title_ends(retain))
    stream = dealt(len(prompts), config.batch_size, rng)
    # Of the last layer only what the answer needs, unless that is where the map is (somebody listens there);
    # never in parts, since the positions are those of the batch.
    answer = partial(answer_logits, model, answers=task.answers, lean=True, cut=False)
    with torch.no_grad():
        sums: Any = (0, 0)
        for index in by_length(prompts, config.batch_size):
            with site.reading(on(device, ends[index])) as seen:
                answer(*to_batch(prompts, index, device))
            sums = [total + x.sum(0) for total, x in zip(sums, seen[0], strict=True)]
        key, value = (total / len(prompts) for total in sums)
        before = answer(*there)
    change = torch.nn.Parameter(torch.zeros_like(value))
    longest = config.clamp * float(value.norm())
    last = [float("nan")]

    def gradients(step: int) -> None:
        drawn = next(stream)
        here = to_batch(prompts, drawn, device)
        with site.adding(change, on(device, ends[drawn])):
            loss = kl_to(answer(*here), target.index_select(0, on(device, drawn)))
        if config.kl_weight:
            with site.adding(change, other_ends):
                kept = kl_to(before, answer(*there))  # KL(edited || before), which moves with both sides
            loss = loss + config.kl_weight * kept
        loss = loss + config.weight_decay * change.norm() / value.norm() ** 2
        (change.grad,) = torch.autograd.grad(loss, [change])
        last[0] = float(loss.detach())

    def after(step: int) -> None:
        with torch.no_grad():
            norm = float(change.norm())
            if norm > longest:
                change.mul_(longest / norm)

    constant = TuneConfig(lr=config.lr, schedule="constant", warmup=0, max_grad_norm=1e9)
    optimise([change], config.steps, gradients, constant, after_step=after)
    parallel.same([key, change])
    return key, change.detach(), last[0]


def dealt(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of n prompts without end, int [size at the most], epoch after epoch in a new order.

    They are as even as they can be: a prompt that is left over would weigh in its step as a batch does in
    another.

    Example:
        >>> stream = dealt(19, 16, np.random.default_rng(0))
        >>> [len(next(stream)) for _ in range(4)]
        [10, 9, 10, 9]
    """
    while True:
        yield from np.array_split(rng.permutation(n), -(-n // size))


def edited(original: Any, path: str, factors: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """theta_o with the edits in one map: in its weight, or with LoRA as ranks joined to its branch.

    Args:
        original: theta_o, left as it is.
        path: of the map's module.
        factors: (left [out], right [in]) of each edit.
    """
    if not factors:
        return copied(original)
    device = next(original.parameters()).device
    left, right = (torch.stack(side).to(device, torch.float32) for side in zip(*factors, strict=True))
    if hasattr(original, "peft_config"):
        more = {path.removeprefix(PREFIX): (right, left.T)}
        return with_factors(original, stacked((1.0, factors_of(original)), (1.0, more)))
    new = copy.deepcopy(original)
    module = new.get_submodule(path)
    with torch.no_grad():
        module.weight.add_((right.T @ left if transposed(module) else left.T @ right).to(module.weight))
    return new
