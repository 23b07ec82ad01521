"""Factors against AdamW itself, and an update whose steps, not gradients, are projected."""

from __future__ import annotations

import types

import pytest
import torch

from curerec.groups.assign import FORGET, FROZEN, SHARED
from curerec.methods.preconditioner import Preconditioner
from curerec.methods.rules import Rules, uniform
from curerec.methods.unlearn import UnlearnConfig, run
from curerec.recommender.units import units_of
from curerec.reports.build import update_part
from made_tasks import made_task


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_factors_are_those_of_adamw_without_momentum(damping):
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(7, 3))
    made = Preconditioner(damping)
    optimizer = None
    for _ in range(5):
        g = torch.randn(7, 3, generator=generator)
        if optimizer is None:
            eps = max(1e-8, damping * float(g.square().mean().sqrt()))
            optimizer = torch.optim.AdamW([p], lr=1.0, betas=(0.0, 0.999), eps=eps, weight_decay=0.0)
        before, p.grad = p.detach().clone(), g
        optimizer.step()
        torch.testing.assert_close(before - p.detach(), g * made.factors({"p": g})["p"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_update_can_project_its_steps(kind):
    def weights(**change):
        task = made_task(kind)
        config = UnlearnConfig(
            forget_loss="rewind", lr=3e-3, max_steps=4, check_every=4, check_size=30, max_auc_drop=1,
            schedule="linear", batch_size=16, damping=0.1, **change,
        )  # fmt: skip
        units = units_of(task.original.model, "row")
        rules = Rules(units, torch.full_like(uniform(units), SHARED), weight=2.0, both=True)
        done = run(task, rules, config)
        assert done.config.projection == change.get("projection")
        return torch.cat([p.detach().flatten() for p in done.model.parameters()])

    plain, steps = weights(), weights(projection="preconditioned")
    assert torch.isfinite(steps).all() and not torch.equal(plain, steps)


def test_the_record_says_what_was_projected():
    def said(**change):
        config = UnlearnConfig(**change)
        outcome = types.SimpleNamespace(details={"update": config}, stop_reason="", trace=())
        return update_part(outcome)["optimizer"]

    assert (said(), said(optimizer="sgd")) == ("adamw", "sgd")
    assert said(projection="preconditioned") == "adamw, projection of its steps"


@pytest.mark.parametrize("what", ["single weights", "whole units"])
def test_its_epsilon_is_of_the_weights_that_may_move_as_adamws_is(what, monkeypatch):
    """AdamW sees the direction, which is 0 elsewhere; of all weights the root mean square is another."""
    task = made_task("full")
    units = units_of(task.original.model, "row")
    generator = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(p.shape, generator=generator) < 0.1
        for name, p in task.original.model.named_parameters()
    }
    seen = {}

    class Watched(Preconditioner):
        def factors(self, total):
            found = super().factors(total)
            seen.setdefault("projection", self.eps)
            return found

    real = torch.optim.AdamW.step

    def step(self, *rest, **more):
        seen.setdefault("step", self.param_groups[0]["eps"])
        return real(self, *rest, **more)

    monkeypatch.setattr("curerec.methods.combining.Preconditioner", Watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    # No unit is task-shared, so nothing is projected and the direction is the plain sum.
    role = torch.full_like(uniform(units), FORGET)
    if what == "whole units":
        masks = None
        role[torch.rand(len(role), generator=generator) < 0.5] = FROZEN
    rules = Rules(units, role, weight=2.0, masks=masks)
    config = UnlearnConfig(
        forget_loss="rewind", max_steps=2, check_every=2, check_size=30, max_auc_drop=1, schedule="linear",
        batch_size=16, damping=0.1, projection="preconditioned",
    )  # fmt: skip
    run(task, rules, config)
    assert seen["projection"] == pytest.approx(seen["step"], rel=1e-4)
