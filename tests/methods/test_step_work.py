"""What a step does to whole gradients is done once, and to the bit what it was."""

from __future__ import annotations

import math

import pytest
import torch

from curerec.groups.assign import SHARED
from curerec.methods.loop import free
from curerec.methods.rules import Rules, times, uniform
from curerec.methods.unlearn import UnlearnConfig, run
from curerec.recommender import parallel
from curerec.recommender.tune import TuneConfig, optimise
from curerec.recommender.units import units_of
from made_steps import Steps
from made_tasks import made_task

STEPS, WEIGHT, DAMPING = 6, 2.0, 0.1
CONFIG = UnlearnConfig(
    forget_loss="rewind", max_steps=STEPS, check_every=STEPS, check_size=20, max_auc_drop=1,
    schedule="linear", batch_size=16, damping=DAMPING, projection="preconditioned", average=0.0, push=1.5,
)  # fmt: skip


def setting():
    """A request, and rules under which a third of the weights may move."""
    task = made_task("full")
    units = units_of(task.original.model, "row")
    generator = torch.Generator().manual_seed(0)
    parameters = task.original.model.named_parameters()
    masks = {name: torch.rand(p.shape, generator=generator) < 0.3 for name, p in parameters}
    role = torch.full_like(uniform(units), SHARED)
    return task, Rules(units, role, weight=WEIGHT, masks=masks, both=True)


def old_way(task, rules, taken):
    """The steps with everything written out: three masked copies, new zeros and a norm in every step."""
    model = task.copy_of_model()
    names = [n for n in rules.trainable() if n in dict(model.named_parameters(remove_duplicate=False))]
    params = free(model, names)
    optimizer = torch.optim.AdamW(params, lr=CONFIG.lr, weight_decay=0.0, fused=True)
    square, eps = {}, 1e-8
    for step in range(STEPS):
        g_f, g_r = (dict(zip(names, side, strict=True)) for side in taken[2 * step : 2 * step + 2])
        forget = {n: CONFIG.push * g for n, g in g_f.items()}
        total = rules.inside({n: g + WEIGHT * g_r[n] for n, g in forget.items()})
        if step == 0:
            squares = sum(float(g.square().sum()) for g in total.values())
            eps = max(eps, DAMPING * (squares / sum(g.numel() for g in total.values())) ** 0.5)
        scale = {}
        for n, g in total.items():
            old = square.get(n, torch.zeros_like(g))
            square[n] = old.lerp(g.square(), 1 - 0.999)
            scale[n] = 1 / ((square[n] / (1 - 0.999 ** (step + 1))).sqrt() + eps)
        direction, _ = rules.combine(forget, g_r, scale)
        for n, p in zip(names, params, strict=True):
            p.grad = direction[n]
        if step == 0:
            squares = sum(float(p.grad.square().sum()) for p in params)
            optimizer.param_groups[0]["eps"] = DAMPING * (squares / sum(p.numel() for p in params)) ** 0.5
        torch.nn.utils.clip_grad_norm_(params, math.inf)
        optimizer.param_groups[0]["lr"] = CONFIG.lr * (1 if step == 0 else 1 - (step - 1) / (STEPS - 1))
        optimizer.step()
    return dict(zip(names, params, strict=True))


def test_steps_are_to_the_bit_those_of_the_old_way(monkeypatch):
    task, rules = setting()
    taken, plain = [], parallel.gradient

    def noted(*args, **options):
        grads, loss = plain(*args, **options)
        taken.append([g.clone() for g in grads])
        return grads, loss

    monkeypatch.setattr(parallel, "gradient", noted)
    found = dict(run(task, rules, CONFIG).model.named_parameters(remove_duplicate=False))
    assert len(taken) == 2 * STEPS
    before = dict(task.original.model.named_parameters(remove_duplicate=False))
    want = old_way(task, rules, taken)
    assert any(not torch.equal(p, before[n]) for n, p in want.items())
    for name, p in want.items():
        assert torch.equal(found[name], p), name


def test_a_step_masks_each_side_once_and_makes_no_zeros_after_the_first(monkeypatch):
    task, rules = setting()
    steps = Steps(monkeypatch)
    inside, zeros = Rules.inside, torch.zeros_like

    def masked(self, gradients):
        steps.note("masked")
        return inside(self, gradients)

    def zeros_like(x, *args, **options):
        if x.numel() > len(rules.units.names):  # of a unit each there is one small tensor
            steps.note("zeros")
        return zeros(x, *args, **options)

    monkeypatch.setattr(Rules, "inside", masked)
    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    run(task, rules, CONFIG)
    assert len(steps.noted) == STEPS and "zeros" in steps.noted[0]
    assert steps.noted[1:] == [["masked", "masked"]] * (STEPS - 1)


@pytest.mark.parametrize(("bound", "norms"), [(math.inf, 0), (1.0, 3)])
def test_gradients_without_a_bound_are_not_clipped(bound, norms, monkeypatch):
    p, told, plain = torch.nn.Parameter(torch.zeros(4)), [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a: told.append(a[1]) or plain(*a))

    def gradients(step):
        p.grad = torch.ones(4)

    optimise([p], 3, gradients, TuneConfig(max_grad_norm=bound, lr=0.1, optimizer="sgd"))
    assert told == [bound] * norms and (p < 0).all()


def test_an_entry_past_all_bounds_spoils_itself_alone():
    p = torch.nn.Parameter(torch.zeros(3))

    def gradients(step):
        p.grad = torch.tensor([1.0, math.inf, -1.0])

    optimise([p], 1, gradients, TuneConfig(max_grad_norm=math.inf, lr=0.1, optimizer="sgd", warmup=0))
    assert p[1] == -math.inf and torch.isfinite(p[[0, 2]]).all()


def test_combine_takes_masked_gradients_as_they_are():
    _, rules = setting()
    generator = torch.Generator().manual_seed(1)
    f, r, scale = (
        {n: torch.randn(m.shape, generator=generator) for n, m in rules.masks.items()} for _ in range(3)
    )
    scale = times(scale, scale)
    want, seen = rules.combine(f, r, scale)
    got, same = rules.combine(rules.inside(f), rules.inside(r), scale, masked=True)
    assert all(torch.equal(got[n], want[n]) for n in want) and torch.equal(seen["dot"], same["dot"])
