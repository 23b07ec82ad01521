"""What `cure` does not offer, tried by putting another function in its place for a run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from curerec.circuits.belonging import in_core
from curerec.groups.assign import FORGET, rows_of_roles
from curerec.methods import Task, rules
from curerec.methods.cure.gradient_share import at_original
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.preconditioner import Preconditioner
from curerec.methods.rollback import changes
from curerec.methods.rules import Gradients
from curerec.prompts.encoding import Prompts, queries
from curerec.recommender.score import score
from curerec.recommender.units import Units, inner_products
from curerec.records import Outcome

cure = importlib.import_module("curerec.methods.cure.method")

loop = importlib.import_module("curerec.methods.unlearn")

SCALES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)


@contextmanager
def retain_side_of_the_trained() -> Iterator[None]:
    """What units hold for those who stay, measured on D_r, which was trained on, instead of on D_c."""

    def on_retain(task: Task, config: Any, units: Units) -> np.ndarray:
        found: np.ndarray = cure.stored(task, config, units, task.retain, config.control_size, 73)
        return found

    with mock.patch.object(cure, "retain_contributions", on_retain):
        yield


@contextmanager
def once() -> Iterator[None]:
    """Circuit and contributions on D_c are found once for all runs inside whose settings of them agree.

    They are of the recommender, and the same for every variant of the update; on a language model they are
    most of its time, which a row's seconds then lack.
    """
    found: dict[str, Any] = {}

    def kept(name: str, fields: tuple[str, ...]) -> Any:
        make = getattr(cure, name)

        def made(task: Task, config: Any, *more: Any) -> Any:
            settings = [getattr(config, field) for field in fields]
            key = f"{name} {task.seed} {settings}"
            if key not in found:
                found[key] = make(task, config, *more)
            return found[key]

        return mock.patch.object(cure, name, made)

    with (
        kept("circuit_of", ("pairs", "pair_pool", "faithfulness", "stable")),
        kept("retain_contributions", ("granularity", "control_size", "path_steps")),
    ):
        yield


@contextmanager
def one_projection() -> Iterator[None]:
    """One conflict over all weights, as in PCGrad, instead of one a unit; groups and going back stay."""

    def whole(units: Units, a: Any, b: Any, *owners: Any) -> torch.Tensor:
        found = inner_products(units, a, b, *owners)
        return found.sum().expand_as(found)

    with mock.patch.object(rules, "inner_products", whole):
        yield


@contextmanager
def neither_loss_moves() -> Iterator[None]:
    """Projected in the metric in which a step for one side leaves the other's loss, ``<g_f, s g_r> = 0``.

    In force are steps at right angles, ``<s g_f, s g_r> = 0``, s what AdamW scales by.
    """
    whole = Preconditioner.factors

    def root(self: Preconditioner, total: Gradients) -> Gradients:
        return {name: factor.sqrt() for name, factor in whole(self, total).items()}

    with mock.patch.object(Preconditioner, "factors", root):
        yield


@contextmanager
def rows_by_memory() -> Iterator[None]:
    """F of a unit is what going back takes off the forget loss in it, weight by weight, the positive ones.

    In force is its share of the squared forget gradient.
    """

    def shares(objective: ForgetObjective, units: Units, *, size: int, draws: int, seed: int) -> Any:
        at_original(objective, size=size, seed=seed)
        gradient, task = objective.at_original, objective.task
        assert gradient is not None
        change = changes(task.original.model, units, task.deltas(units))
        root = {n: (gradient[n] * change[n]).clamp(min=0).sqrt() for n in gradient if n in change}
        found = inner_products(units, root, root).double().cpu().numpy()
        return found / found.sum(), None

    with mock.patch.object(cure, "gradient_shares", shares):
        yield


@contextmanager
def rows_of_any_type() -> Iterator[None]:
    """The rows that can forget are those with most forget gradient a weight, of any type.

    In force is the same share of the rows of each type. Here as many weights: 1 - tau of the core's.
    """
    groups_of = cure.groups_of

    def across(task: Task, config: Any, circuit: Any) -> Any:
        units, groups = groups_of(task, config, circuit)
        ones = {name: torch.ones_like(p) for name, p in task.original.model.named_parameters()}
        sizes = inner_products(units, ones, ones).double().cpu().numpy()
        inside = in_core(circuit, units) if config.scope == "core" else np.ones(len(sizes), bool)
        order = np.argsort(-np.where(inside, groups.forget_score / np.maximum(sizes, 1), -1.0), kind="stable")
        room = (1 - config.tau) * sizes[inside].sum()
        high = np.zeros(len(sizes), bool)
        high[order[np.cumsum(sizes[order]) <= room]] = True
        learns = np.isin(groups.role.astype(str), ("retain", "shared"))
        role = np.where(high, np.where(learns, "shared", "forget"), "frozen")
        role = np.where(~high & learns, "retain", role)
        return units, replace(groups, role=np.where(inside, role, "frozen").astype(object))

    with mock.patch.object(cure, "groups_of", across):
        yield


@contextmanager
def plain_sum() -> Iterator[None]:
    """Every unit forget-specific, so both gradients are summed; what goes back is chosen as ever."""

    def same(groups: Any) -> np.ndarray:
        return np.full_like(rows_of_roles(groups), FORGET)

    with mock.patch.object(cure, "rows_of_roles", same):
        yield


@contextmanager
def weights_chosen_by(whom: str) -> Iterator[None]:
    """The weights that move and go back are chosen by the gradient of others than all of D_f.

    Roles, the forget loss and its gradient in the steps stay D_f's, and as many weights are taken.

    Args:
        whom: ``half of D_f``, or ``as many of D_r``: how much of the choice is about these very examples.
    """
    of_forget = cure.weights_of

    def of_others(task: Task, config: Any, units: Units, role: np.ndarray, as_large_as: Any = None) -> Any:
        objective = ForgetObjective.of(task, config.update)
        own, n = objective.at_original, len(task.forget)
        if whom == "half of D_f":
            at_original(objective, size=n // 2, seed=5)
        else:
            drawn = np.random.default_rng(7).choice(len(task.retain), n, replace=False)
            asked = ForgetObjective(replace(task, forget=task.retain.take(drawn)), config.update)
            at_original(asked, size=n, seed=0)
            objective.at_original = asked.at_original
        try:
            return of_forget(task, config, units, role, as_large_as)
        finally:
            objective.at_original = own

    with mock.patch.object(cure, "weights_of", of_others):
        yield


@contextmanager
def held_where_nobody_was_trained(share: float) -> Iterator[None]:
    """A share of each batch of D_r asks for another example's item, and is held to theta_o's answer to that.

    On prompts that it was trained on a model can keep its answers by what it remembers of them. Nobody was
    trained on these: there it has to keep what it answers everyone by.
    """

    def encode_and_answer(self: Any, part: Any, before: Any) -> tuple[Prompts, np.ndarray]:
        asked = queries(self.task.data, part)
        changed = np.flatnonzero(self.rng.random(len(part)) < share)
        candidate = asked.candidate.copy()
        candidate[changed] = candidate[self.rng.permutation(changed)]
        known = (asked.history == candidate[:, None]).any(1)
        candidate[known] = asked.candidate[known]
        changed = np.flatnonzero(candidate != asked.candidate)
        prompts = self.task.encoder.encode(replace(asked, candidate=candidate))
        logits = self.task.retain_logits(before)
        model = self.task.original.model
        logits[changed] = score(model, prompts.take(changed), self.task.answers)
        yes = 1 / (1 + np.exp(logits[changed, 0] - logits[changed, 1]))
        label = prompts.label.copy()
        label[changed] = self.rng.random(len(changed)) < yes
        return replace(prompts, label=label), logits

    with mock.patch.object(loop.RetainBatches, "encoded", encode_and_answer):
        yield


@torch.no_grad()
def line_search(task: Task, outcome: Outcome) -> Outcome:
    """The update as a task vector, so long that D_f is told from D_c as by the base model.

    Of the lengths in :data:`SCALES`, those at which the AUC on D_v is no more than .002 below that of the
    update as it is; of these the one whose membership AUC is nearest to the base model's. No retrain enters.
    """
    forget, control, valid = (task.encode(part) for part in (task.forget, task.control, task.valid))

    def margins(model: Any, prompts: Any) -> np.ndarray:
        logits = score(model, prompts, task.answers)
        return logits[:, 1] - logits[:, 0]

    def membership(model: Any) -> float:
        right = [(2 * p.label.astype(float) - 1) * margins(model, p) for p in (forget, control)]
        return float(roc_auc_score(np.repeat([1, 0], [len(forget), len(control)]), np.concatenate(right)))

    target = membership(task.base_model())
    new = {n: p.detach() for n, p in outcome.model.named_parameters()}
    found = []
    for scale in SCALES:
        model = task.copy_of_model()
        for name, p in model.named_parameters():
            p.lerp_(new[name], scale)
        found.append(
            (scale, model, membership(model), float(roc_auc_score(valid.label, margins(model, valid))))
        )
    least = next(auc for scale, _, _, auc in found if scale == 1.0) - 0.002
    scale, model, *_ = min((one for one in found if one[3] >= least), key=lambda one: abs(one[2] - target))
    return replace(outcome, model=model, details={**outcome.details, "scale": scale})
