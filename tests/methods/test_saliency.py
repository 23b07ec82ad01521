"""Weights inside the groups: which move, which are taken back first, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits.adapter import weight_deltas
from curerec.config import parse
from curerec.errors import ConfigError
from curerec.groups.assign import FORGET, FROZEN, RETAIN, SHARED
from curerec.methods.cure.method import CureConfig
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.loop import free, tuned_names
from curerec.methods.rollback import changes, roll_back
from curerec.methods.rules import Rules, role_of_factor
from curerec.methods.saliency import (
    at_random,
    attributed,
    n_salient,
    remembering,
    salient,
    share_of_gradient,
)
from curerec.methods.unlearn import SmallRequests
from curerec.recipe import Recipe
from curerec.recommender.units import units_of
from made_tasks import made_task
from made_updates import changed, setting, tuned

CASES = [(kind, lora) for kind in ("llama", "gpt2") for lora in (False, True)]
SMALL = {"pairs": 12, "pair_pool": 20, "control_size": 30, "draws": 4, "scope": "all"}


def roles_of_weights(units, role, gradient):
    """The role of every single weight, a parameter at a time, in the plain way."""
    out = {}
    for branch in units.branches:
        if branch.shared is not None:
            shape = gradient[branch.shared].shape
            out[branch.shared] = torch.full(shape, int(role_of_factor(role[torch.from_numpy(branch.unit)])))
        for name, dim in branch.slices:
            if name in out:
                continue
            each = torch.zeros(gradient[name].shape, dtype=torch.int64)
            for k, unit in enumerate(branch.unit):
                each[(slice(None),) * dim + (k,)] = role[unit]
            out[name] = each
    return out


@pytest.mark.parametrize("share", [0.02, 0.2, 1.0])
@pytest.mark.parametrize(
    ("kind", "lora", "size"), [*((*case, "row") for case in CASES), ("llama", True, "rank")]
)
def test_the_largest_gradients_of_units_that_forget(kind, lora, size, share):
    units, role, gradient, _ = setting(size, lora, kind=kind)
    masks = salient(units, role.numpy(), gradient, share)
    of = roles_of_weights(units, role, gradient)
    assert set(masks) == set(gradient)
    inside = {n: (of[n] == FORGET) | (of[n] == SHARED) for n in of}
    chosen = torch.cat([gradient[n][masks[n] & inside[n]].abs() for n in masks])
    left = torch.cat([gradient[n][~masks[n] & inside[n]].abs() for n in masks])
    total = sum(g.numel() for g in gradient.values())
    can = sum(int(x.sum()) for x in inside.values())
    assert len(chosen) == min(int(share * total), can)
    assert not len(left) or chosen.min() >= left.max()
    for n, mask in masks.items():
        assert mask.dtype == torch.bool and mask.shape == gradient[n].shape
        assert bool(mask[of[n] == RETAIN].all()) and not bool(mask[of[n] == FROZEN].any())
    held = float(chosen.double().square().sum()) / sum(
        float(g.double().square().sum()) for g in gradient.values()
    )
    assert share_of_gradient(masks, units, role.numpy(), gradient) == pytest.approx(held, rel=1e-6)


@pytest.mark.parametrize("share", [0.02, 0.2, 1.0])
@pytest.mark.parametrize(("kind", "lora"), CASES)
def test_memory_is_gradient_times_change_with_its_sign(kind, lora, share):
    units, role, gradient, other = setting("row", lora, kind=kind)
    change = {
        b.weight: other[b.weight] for b in units.branches
    }  # of a factor that is not sliced there is none
    masks = remembering(units, role.numpy(), gradient, change, share)
    of = roles_of_weights(units, role, gradient)
    able = {n: (of[n] == FORGET) | (of[n] == SHARED) for n in change}
    chosen = torch.cat([(gradient[n] * change[n])[masks[n]] for n in change])
    left = torch.cat([(gradient[n] * change[n])[~masks[n] & able[n]] for n in change])
    assert chosen.min() > 0
    assert len(chosen) == min(
        int(share * sum(g.numel() for g in gradient.values())), len(chosen) + int((left > 0).sum())
    )
    assert not len(left) or chosen.min() >= left.max()
    assert (
        all(mask.shape == gradient[n].shape for n, mask in masks.items()) and masks.keys() == gradient.keys()
    )
    assert not any(bool((masks[n] & ~able.get(n, torch.tensor(False))).any()) for n in masks)
    assert attributed(masks, gradient, change) == pytest.approx(float(chosen.double().sum()), rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_what_goes_back_is_what_fine_tuning_changed(lora):
    base, model = tuned(lora)
    units, deltas = changed(base, model)
    found = {n: change.clone() for n, change in changes(model, units, deltas).items()}
    old = {n: p.detach().clone() for n, p in model.named_parameters()}
    roll_back(model, units, deltas, np.zeros(len(units.names)))
    new = dict(model.named_parameters())
    for name, change in found.items():
        assert bool(change.any())
        torch.testing.assert_close(old[name] - change, new[name].detach(), atol=1e-7, rtol=1e-6)
        if not lora:
            torch.testing.assert_close(new[name], dict(base.named_parameters())[name], atol=1e-6, rtol=1e-6)


def test_going_back_where_memory_lies_forgets_more_than_going_back_everywhere():
    """To first order by construction; here by the forget loss itself, which falls by what was predicted."""
    task = made_task()
    config = CureConfig.model_validate(SMALL)
    objective = ForgetObjective.of(task, config.update)
    units = units_of(task.original.model, "row")
    role = np.full(len(units.names), FORGET)
    model = task.copy_of_model()
    names = tuned_names(model)
    gradient = dict(zip(names, objective.gradient(model, free(model, names))[0], strict=True))
    deltas = weight_deltas(model, task.base_state, units)
    change = changes(model, units, deltas)
    every = {n: torch.ones_like(g, dtype=torch.bool) for n, g in gradient.items()}
    memory = remembering(units, role, gradient, change, 1.0)
    rest = {n: ~memory[n] for n in memory}

    def after(masks):
        copy = task.copy_of_model()
        roll_back(copy, units, deltas, np.full(len(units.names), 0.99), masks)
        return float(objective.loss(copy, np.arange(len(objective.prompts))).detach())

    before = float(objective.loss(model, np.arange(len(objective.prompts))).detach())
    assert after(memory) < after(every) < after(rest) and after(memory) < before < after(rest)
    predicted = 0.01 * attributed(memory, gradient, change)
    assert before - after(memory) == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize(("kind", "lora"), CASES)
def test_the_twin_has_as_many_of_any_gradient(kind, lora):
    units, role, gradient, _ = setting("row", lora, kind=kind)
    role = role.numpy()
    ours = salient(units, role, gradient, 0.1)
    count = n_salient(ours, units, role)
    twins = [at_random(units, role, gradient, count, seed=s) for s in (0, 0, 1)]
    assert {n_salient(masks, units, role) for masks in (ours, *twins)} == {count}
    every = at_random(units, role, gradient, 10**9, seed=0)  # more than there are: all that can forget
    inside = salient(units, role, gradient, 1.0)
    assert all(torch.equal(every[n], inside[n]) for n in every)
    same = [all(torch.equal(twins[0][n], t[n]) for n in t) for t in twins[1:]]
    assert same == [True, False]
    of = roles_of_weights(units, torch.from_numpy(role), gradient)
    assert not any(bool(twins[0][n][of[n] == FROZEN].any()) for n in of)
    ratio = [share_of_gradient(m, units, role, gradient) for m in (ours, twins[0])]
    assert ratio[0] > 2 * ratio[1]


def test_weights_without_a_gradient_are_never_taken():
    units, role, gradient, _ = setting("row", False)
    for g in gradient.values():
        g.zero_()
    name = next(iter(gradient))
    gradient[name].view(-1)[3] = 1.0
    role[:] = FORGET
    masks = salient(units, role.numpy(), gradient, 0.5)
    assert sum(int(m.sum()) for m in masks.values()) == 1 and bool(masks[name].view(-1)[3])
    nothing = salient(units, role.numpy(), {n: torch.zeros_like(g) for n, g in gradient.items()}, 0.5)
    assert not any(bool(m.any()) for m in nothing.values())


@pytest.mark.parametrize("lora", [False, True])
def test_rules_see_masked_gradients_alone(lora):
    """Projection included: what lies outside the mask neither moves nor decides how a unit moves."""
    units, role, forget, retain = setting("row", lora)
    masks = salient(units, role.numpy(), forget, 0.2)
    got, seen = Rules(units, role, weight=2.0, masks=masks).combine(forget, retain)
    cut = [{n: g * masks[n] for n, g in side.items()} for side in (forget, retain)]
    want, as_if = Rules(units, role, weight=2.0).combine(*cut)
    for n in want:
        torch.testing.assert_close(got[n], want[n], rtol=0, atol=0)
        assert not bool(got[n][~masks[n]].any())
    torch.testing.assert_close(seen["projected"], as_if["projected"])


def test_parameters_that_may_change_are_counted():
    units, role, gradient, _ = setting("row", False)
    of = roles_of_weights(units, role, gradient)
    plain = Rules(units, role)
    assert plain.n_movable(gradient) == sum(int((of[n] != FROZEN).sum()) for n in of)
    masks = salient(units, role.numpy(), gradient, 0.1)
    masked = Rules(units, role, masks=masks)
    assert masked.n_movable(gradient) == sum(int(m.sum()) for m in masks.values())
    masks = {n: torch.zeros_like(m) for n, m in masks.items()}
    assert Rules(units, role, masks=masks).trainable() == []


@pytest.mark.parametrize("lora", [False, True])
def test_only_masked_weights_are_rolled_back(lora):
    base, model = tuned(lora)
    units, deltas = changed(base, model)
    old = {n: p.detach().clone() for n, p in model.named_parameters()}
    rng = np.random.default_rng(0)
    masks = {n: torch.from_numpy(rng.random(tuple(p.shape)) < 0.3) for n, p in old.items()}
    roll_back(model, units, deltas, np.full(len(units.names), 0.25), masks)
    before = dict(base.named_parameters())
    moved = 0
    for branch in {b.weight: b for b in units.branches}.values():
        n = branch.weight
        new, mask = dict(model.named_parameters())[n].detach(), masks[n]
        assert torch.equal(new[~mask], old[n][~mask])
        goal = 0.25 * old[n] if lora else before[n] + 0.25 * (old[n] - before[n])
        torch.testing.assert_close(new[mask], goal[mask], atol=1e-6, rtol=1e-5)
        moved += int((new != old[n]).sum())
    assert moved


@pytest.mark.parametrize("name", ["saliency", "rolled_back"])
def test_it_needs_the_gradient(name):
    wrong = {"kept": {"forget": 0.5}, name: 0.2, "forget_score": "path"}
    with pytest.raises(ConfigError, match=f"{name} .* forget_score gradient"):
        parse(Recipe, {"cure": wrong}, where="recipe")
    small = {"update": {"small": {"below": 0.1, "rolled_back": 0.2}}}
    with pytest.raises(ConfigError, match=r"small.rolled_back"):
        parse(Recipe, {"cure": {"forget_score": "path", **small}}, where="recipe")


def test_recipes_without_it_keep_their_digest():
    """The digest names cells of earlier benchmarks and retain sides that were kept."""
    assert not {"saliency", "rolled_back"} & Recipe().model_dump(mode="json")["cure"].keys()
    for name in ("saliency", "rolled_back"):
        assert (
            CureConfig(**{name: 0.5}, kept={"forget": 0.5}).digest != CureConfig(kept={"forget": 0.5}).digest
        )
    assert "rolled_back" not in SmallRequests(below=0.1).model_dump()
