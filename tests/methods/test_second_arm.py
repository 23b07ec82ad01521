"""Two updates of one recommender, and the mean of their weights: against both made by themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_rules import CASES, slices
from test_saliency import SMALL

from curerec.groups.assign import FORGET, FROZEN, RETAIN, SHARED, rows_of_roles
from curerec.methods import METHODS
from curerec.methods.cure.method import CureConfig, explain, update_by_groups
from curerec.methods.cure.second_arm import SecondArm
from curerec.methods.pcgrad.method import projected
from curerec.methods.rules import Rules
from curerec.methods.unlearn import retain_weight, run
from curerec.recipe import Recipe
from curerec.reports.build import update_part
from made_cases import soaked
from made_tasks import made_task
from made_updates import setting

STEPS = {"forget_loss": "rewind", "lr": 1e-2, "max_steps": 4, "check_every": 2, "max_auc_drop": 1.0}
STEPS |= {"schedule": "linear", "projection": "preconditioned", "anchor": 0.1, "open_gap": 0.1}
ARM = {"lr": 5e-3, "push": 2.0}


def config_of(second=ARM, update=None, **parts):
    back = {"rolled_back": 0.3, "kept": {"forget": 0.5, "shared": 0.5}, "project": "both"}
    values = {**SMALL, **back, **parts, "update": {**STEPS, **(update or {})}, "second_arm": second}
    return CureConfig.model_validate(values)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.slow
def test_the_mean_is_that_of_two_updates_made_by_themselves():
    task, config = made_task(), config_of({**ARM, "share": 0.25})
    out = METHODS["cure"][0](task, config)
    first = METHODS["cure"][0](made_task(), config_of(None))
    alone = made_task()
    _, units, groups = explain(alone, config)
    codes = torch.from_numpy(rows_of_roles(groups))
    rules = Rules(units, codes, weight=retain_weight(alone, config.update), both=True, whole=True)
    own = {**ARM, "anchor": None, "projection": None, "open_gap": None}
    second = run(alone, rules, config.update.model_copy(update=own))
    one, two, mean = (weights(m) for m in (first.model, second.model, out.model))
    assert any(not torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    for name in mean:
        torch.testing.assert_close(mean[name], 0.75 * one[name] + 0.25 * two[name], atol=1e-6, rtol=1e-5)
    found = out.details["second_arm"]
    assert str(found["trace"]) == str(second.trace) and found["update"].lr == ARM["lr"]  # nan is not nan
    assert str(out.trace[:-1]) == str(first.trace) and out.trace[-1]["step"] == out.details["steps"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("method", [soaked("random_modules"), "random_groups"])
def test_the_twins_have_two_arms_too(method):
    out = METHODS[method][0](made_task(), config_of())
    assert out.details["second_arm"]["steps"] == 4 and out.details["steps"] == 8
    alone = METHODS[method][0](made_task(), config_of(None))
    assert "second_arm" not in alone.details


@pytest.mark.slow
def test_frozen_units_stay_and_whole_rows_count_as_changed():
    task, config = made_task(), config_of(saliency=0.05)
    circuit, units, groups = explain(task, config)
    role = groups.role.copy()
    role[::3] = "frozen"
    groups = replace(groups, role=role)
    out = update_by_groups(task, config, units, groups, circuit, "cure")
    before, after = weights(task.original.model), weights(out.model)
    rules = Rules(units, torch.from_numpy(rows_of_roles(groups)))
    moved = 0
    for name, (dim, owner) in rules.owner.items():
        change = (after[name] - before[name]).abs()
        by_row = change.amax([d for d in range(change.ndim) if d != dim]) if change.ndim > 1 else change
        assert not by_row[torch.from_numpy(role[owner.numpy()] == "frozen")].any()
        moved += int((change > 0).sum())
    one = update_by_groups(task, config_of(None, saliency=0.05), units, groups, circuit, "cure")
    assert one.n_trainable < moved <= out.n_trainable


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_an_adapter_and_a_small_request_do_without(kind):
    small = {"below": 0.99} if kind == "full" else None
    config = config_of(update={"small": small})
    out = METHODS["cure"][0](made_task(kind), config)
    assert "second_arm" not in out.details and out.details["steps"] == 4
    assert update_part(out)["second_arm"] is None


def test_what_a_small_request_has_otherwise():
    small = {"below": 0.03, "saliency": 0.1, "push": 1.5, "max_steps": 60}
    config = config_of(update={"small": small})
    few, many = (10, 990), (100, 900)
    assert (config.saliency_for(*few), config.saliency_for(*many)) == (0.1, None)
    assert config.second_arm_for(*few) is None and config.second_arm_for(*many) == SecondArm(**ARM)
    assert config.second_arm_for(*many, adapter=True) is None
    assert (config.update.for_request(*few).max_steps, config.update.for_request(*many).max_steps) == (60, 4)
    with pytest.raises(ValueError, match=r"update.small.saliency"):
        config_of(forget_score="path", rolled_back=None, update={"small": small})


@pytest.mark.slow
def test_the_record_has_both():
    part = update_part(METHODS["cure"][0](made_task(), config_of()))
    second = part["second_arm"]
    assert [p["step"] for p in part["trace"]] == [0, 2, 4, 8] and [p["step"] for p in second["trace"]] == [
        0,
        2,
        4,
    ]
    assert second["conflicts"]["steps"] and second["share"] == 0.5
    assert (part["optimizer"], second["optimizer"]) == ("adamw, projection of its steps", "adamw")


@pytest.mark.slow_but("*-rank-*", "*-projection-*", "*-head_mlp-*", "*-row-True")
@pytest.mark.parametrize(("granularity", "lora"), CASES)
@pytest.mark.parametrize("both", [False, True])
def test_one_conflict_over_all_that_forgets(granularity, lora, both):
    """Against the products of the two vectors of all units, and LoRA factors, that forget."""
    units, role, forget, retain = setting(granularity, lora, seed=3)
    for sign in (1, -1):  # one of the two conflicts
        against = {n: sign * g for n, g in retain.items()}
        rules = Rules(units, role, weight=2.0, both=both, whole=True)
        got, seen = rules.combine(forget, against)
        able = [u for u in range(len(units.names)) if int(role[u]) in (FORGET, SHARED)]
        f, r = ([slices(units, side, u) for u in able] for side in (forget, against))
        for name, shared in rules.factors.items():
            if shared in (FORGET, SHARED):
                f.append(forget[name].double().flatten())
                r.append(against[name].double().flatten())
        f, r = torch.cat(f), torch.cat(r)
        dot, ff, rr = float(f @ r), float(f @ f), float(r @ r)
        a, b = 1.0, 2.0
        if dot < 0:
            a, b = 1 - (2 * dot / ff if both else 0), 2 - dot / rr
        assert bool(seen["projected"].any()) == (dot < 0)
        for unit in range(len(units.names)):
            mine, kept = slices(units, forget, unit), slices(units, against, unit)
            plain = {FROZEN: 0 * kept, RETAIN: 2 * kept, FORGET: mine + 2 * kept, SHARED: a * mine + b * kept}
            want = plain[int(role[unit])]
            torch.testing.assert_close(slices(units, got, unit), want, atol=1e-4, rtol=1e-3)


def test_where_every_unit_is_shared_it_is_pcgrad():
    units, role, forget, retain = setting("row", False, seed=1)
    if sum(float((forget[n] * retain[n]).sum()) for n in forget) > 0:
        retain = {n: -g for n, g in retain.items()}
    rules = Rules(units, torch.full_like(role, SHARED), weight=3.0, both=True, whole=True)
    got, _ = rules.combine(forget, retain)
    f, r = (np.concatenate([g.numpy().ravel() for g in side.values()]) for side in (forget, retain))
    a, b = map(float, projected(*torch.tensor([f @ f, f @ (3 * r), 9 * r @ r], dtype=torch.float64)))
    for name in got:
        torch.testing.assert_close(got[name], a * forget[name] + b * 3 * retain[name], atol=1e-4, rtol=1e-3)


def test_without_it_configurations_keep_their_digest():
    cure = Recipe().model_dump(mode="json")["cure"]
    assert "second_arm" not in cure and config_of().digest != config_of(None).digest
