"""The three rules against a slow reference that walks through the units one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from curerec.groups.assign import FORGET, FROZEN, RETAIN, SHARED
from curerec.methods.pcgrad.method import projected
from curerec.methods.rules import Rules, times, uniform
from made_cases import soaked
from made_models import made_encoder
from made_updates import setting

WORDS = len(made_encoder().tokenizer)
CASES = [(g, lora) for g in ("row", "projection", "head_mlp") for lora in (False, True)]
CASES += [("rank", True)]


def slices(units, gradients, unit):
    """The entries of a unit's slices, in one vector."""
    parts = []
    for branch in {b.weight: b for b in units.branches}.values():
        index = np.flatnonzero(branch.unit == unit)
        for name, dim in branch.slices:
            g = gradients[name]
            parts.append((g[index] if dim == 0 else g[:, index]).reshape(-1).double())
    return torch.cat(parts)


def rule(role, f, r, w, both=False):
    if role == FROZEN:
        return torch.zeros_like(f)
    if role == RETAIN:
        return w * r
    if role == SHARED:
        against = min(0.0, float(f @ r))
        kept = r - against / float(f @ f) * f if both else r
        return f - against / float(r @ r) * r + w * kept
    return f + w * r


@pytest.mark.slow_but("*-rank-*", "*-projection-*", "*-head_mlp-*", "True-row-True")
@pytest.mark.parametrize(("granularity", "lora"), CASES)
@pytest.mark.parametrize("both", [False, True])
def test_with_factors_it_is_the_scaled_steps_that_no_longer_conflict(granularity, lora, both):
    units, role, forget, retain = setting(granularity, lora)
    generator = torch.Generator().manual_seed(1)
    scale = {n: 10 ** (2 * torch.rand(g.shape, generator=generator) - 1) for n, g in forget.items()}
    rules = Rules(units, role, weight=2.0, both=both)
    got, seen = rules.combine(forget, retain, scale)
    got, plain = (times(g, scale) for g in (got, rules.combine(forget, retain)[0]))
    f, r = times(forget, scale), times(retain, scale)
    differs = False
    for unit in range(len(units.names)):
        pair = slices(units, f, unit), slices(units, r, unit)
        d = slices(units, got, unit)
        torch.testing.assert_close(d, rule(int(role[unit]), *pair, 2.0, both), atol=2e-4, rtol=1e-3)
        differs |= not torch.allclose(d, slices(units, plain, unit), atol=1e-3)
    assert differs == bool(seen["projected"].any())
    for name, shared in rules.factors.items():  # what several units of an adapter share, as one vector
        pair = f[name].double().flatten(), r[name].double().flatten()
        want = rule(int(shared), *pair, 2.0, both)
        torch.testing.assert_close(got[name].double().flatten(), want, atol=2e-4, rtol=1e-3)


@pytest.mark.slow_but("*-rank-*", "*-projection-*", "*-head_mlp-*", "*-row-True", "False-phi3-2.0-row-False")
@pytest.mark.parametrize(("granularity", "lora"), CASES)
@pytest.mark.parametrize(
    ("kind", "weight"),
    [("llama", 0.0), ("llama", 1.0), soaked("llama", 3.0), soaked("gpt2", 2.0), ("phi3", 2.0)],
)
@pytest.mark.parametrize("both", [False, True])
def test_combine_against_one_unit_at_a_time(kind, granularity, lora, weight, both):
    """Also where the weights are stored the other way round, and several units share one fused map."""
    units, role, forget, retain = setting(granularity, lora, kind=kind)
    got, seen = Rules(units, role, weight=weight, both=both).combine(forget, retain)
    assert set(got) == set(forget)
    for unit in range(len(units.names)):
        f = slices(units, forget, unit)
        r = slices(units, retain, unit)
        want = rule(int(role[unit]), f, r, weight, both)
        d = slices(units, got, unit)
        torch.testing.assert_close(d, want, atol=2e-5, rtol=1e-4)
        cos = float(f @ r / (f.norm() * r.norm()))
        said = float("nan") if int(role[unit]) == FROZEN else cos  # what is frozen conflicts with nothing
        assert float(seen["cos"][unit]) == pytest.approx(said, abs=1e-5, nan_ok=True)
        assert bool(seen["projected"][unit]) == (int(role[unit]) == SHARED and cos < 0)


@pytest.mark.parametrize("granularity", ["row", "projection", "head_mlp"])
@pytest.mark.parametrize("both", [False, True])
def test_a_shared_factor_takes_the_most_conservative_role(granularity, both):
    units, role, forget, retain = setting(granularity, True, seed=4)
    mixed = 0
    for roles in (
        role,
        torch.full_like(role, FORGET),
        torch.full_like(role, RETAIN),
        torch.full_like(role, FROZEN),
    ):
        rules = Rules(units, roles, weight=2.0, both=both)
        got, _ = rules.combine(forget, retain)
        for branch in units.branches:
            present = set(roles[branch.unit].tolist()) - {FROZEN}
            wanted = FROZEN if not present else present.pop() if len(present) == 1 else SHARED
            mixed += wanted == SHARED
            f, r = (g[branch.factor].reshape(-1).double() for g in (forget, retain))
            want = rule(wanted, f, r, 2.0, both).view_as(got[branch.factor])
            torch.testing.assert_close(got[branch.factor].double(), want, atol=2e-5, rtol=1e-4)
            assert (branch.factor in rules.trainable()) == (wanted != FROZEN)
    assert mixed


@pytest.mark.slow_but("*-rank-*", "*-projection-*", "*-head_mlp-*", "1.0-row-*")
@pytest.mark.parametrize(("granularity", "lora"), CASES)
@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-10])
def test_a_projected_step_does_not_undo_retaining_whatever_the_scale(granularity, lora, scale):
    units, role, forget, retain = setting(granularity, lora, scale=scale)
    got, seen = Rules(units, torch.full_like(role, SHARED), weight=0.0).combine(forget, retain)
    assert seen["projected"].any() and not seen["projected"].all()
    assert not seen["cos"].isnan().any()
    for unit in range(len(units.names)):
        d = slices(units, got, unit)
        r = slices(units, retain, unit)
        f = slices(units, forget, unit)
        assert float(d @ r) >= -1e-5 * float(f.norm() * r.norm())
        if not seen["projected"][unit]:
            torch.testing.assert_close(d, f)


def test_frozen_units_do_not_move_and_need_no_gradient():
    units, role, forget, retain = setting("projection", False)
    role = torch.full_like(role, FROZEN)
    role[units.names.index("layers.0.q_proj")] = FORGET
    rules = Rules(units, role, weight=1.0)
    assert rules.trainable() == ["model.layers.0.self_attn.q_proj.weight"]
    part = ({n: g[n] for n in rules.trainable()} for g in (forget, retain))
    got, _ = rules.combine(*part)
    assert set(got) == set(rules.trainable())
    got, _ = rules.combine(forget, retain)
    assert all((g == 0).all() for n, g in got.items() if n not in rules.trainable())


def test_a_unit_without_any_gradient_stays_finite():
    units, role, forget, retain = setting("row", False)
    zero = {n: torch.zeros_like(g) for n, g in forget.items()}
    for f, r in ((zero, retain), (forget, zero), (zero, zero)):
        got, seen = Rules(units, torch.full_like(role, SHARED), weight=1.0).combine(f, r)
        assert all(g.isfinite().all() for g in got.values())
        assert seen["cos"].isnan().all() and not seen["projected"].any()


def test_half_precision_gradients_are_summed_in_single():
    units, role, forget, retain = setting("projection", False)
    half = [{n: t.bfloat16() for n, t in g.items()} for g in (forget, retain)]
    role = torch.full_like(role, SHARED)
    got, seen = Rules(units, role).combine(*half)
    want, truth = Rules(units, role).combine(*({n: t.float() for n, t in g.items()} for g in half))
    torch.testing.assert_close(seen["cos"], truth["cos"], atol=1e-6, rtol=1e-5)
    for name in got:
        torch.testing.assert_close(got[name].float(), want[name], atol=0.05, rtol=0.02)


def test_uniform_is_the_weighted_sum():
    units, _, forget, retain = setting("row", True)
    got, _ = Rules(units, uniform(units), weight=0.5).combine(forget, retain)
    for name in got:
        torch.testing.assert_close(got[name], forget[name] + 0.5 * retain[name])


def test_a_unit_that_is_all_there_is_follows_pcgrad():
    """Both projected in one task-shared unit over everything: the rule of the baseline."""
    units, role, forget, retain = setting("projection", False)
    one = replace(units, branches=tuple(replace(b, unit=np.zeros_like(b.unit)) for b in units.branches))
    names = {b.weight for b in units.branches}
    dot = sum(float((forget[n].double() * retain[n].double()).sum()) for n in names)
    retain = {n: g * (-1 if dot > 0 else 1) for n, g in retain.items()}  # they are to conflict
    ff, rr = (sum(float(g[n].double().square().sum()) for n in names) for g in (forget, retain))
    products = torch.tensor([ff, -abs(dot) * 3.0, 9.0 * rr], dtype=torch.float64)
    a, b = projected(*products)
    got, _ = Rules(one, torch.full_like(role, SHARED), weight=3.0, both=True).combine(forget, retain)
    for name in names:
        torch.testing.assert_close(got[name], a * forget[name] + b * 3.0 * retain[name], atol=1e-5, rtol=1e-4)


def test_each_projected_step_is_at_right_angles_to_the_other_as_it_was():
    """Not to the other projected one: these two point along each other (docs/method.md, step 7)."""
    units, role, forget, retain = setting("row", False)
    scale = {n: torch.rand_like(g) + 0.1 for n, g in forget.items()}
    f, r = times(forget, scale), times(retain, scale)
    alone, with_retain = (
        Rules(units, role, weight=w, both=True).combine(forget, retain, scale) for w in (0, 1)
    )
    of_f = times(alone[0], scale)  # without a weight the retain side has no step of its own
    of_r = {n: g - of_f[n] for n, g in times(with_retain[0], scale).items()}
    conflicting = np.flatnonzero(with_retain[1]["projected"].numpy())
    assert len(conflicting) > 3
    for unit in conflicting:
        a, b, fa, rb = (slices(units, g, unit) for g in (f, r, of_f, of_r))
        size = a.norm() * b.norm()
        assert abs(fa @ b) < 1e-4 * size and abs(rb @ a) < 1e-4 * size
        cos = a @ b / size
        assert float(fa @ rb) == pytest.approx(float(-(a @ b) * (1 - cos**2)), abs=1e-4 * float(size))
        assert fa @ rb >= -1e-4 * size
