"""What each step did to each module: against gradients and weights looked at by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.groups.assign import FROZEN, SHARED
from curerec.methods.cagrad.method import CagradConfig, cagrad
from curerec.methods.combining import Combining
from curerec.methods.conflicts import Watcher, module_of
from curerec.methods.rules import Rules, uniform
from curerec.methods.unlearn import UnlearnConfig, run
from curerec.recommender.units import units_of
from curerec.reports.build import update_part
from made_tasks import made_task


def config(**change):
    return UnlearnConfig(
        **{
            "forget_loss": "rewind", "lr": 3e-3, "max_steps": 5, "check_every": 5, "check_size": 30,
            "max_auc_drop": 1, "schedule": "linear", "batch_size": 16, **change,
        }
    )  # fmt: skip


@pytest.mark.parametrize("granularity", ["row", "projection"])
def test_a_module_s_cosine_is_that_of_its_gradients_put_together(granularity):
    """Of the units' own cosines no mean would be: two that cancel are none that agree."""
    task = made_task()
    model = task.copy_of_model()
    units = units_of(model, granularity)
    rules = Rules(units, torch.full_like(uniform(units), SHARED), weight=2.0)
    generator = torch.Generator().manual_seed(0)
    f, r = (
        {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()} for _ in range(2)
    )
    _, seen = rules.combine(f, r)
    watcher = Watcher(units, rules.owners)
    parameters = dict(model.named_parameters())
    watcher.combined(seen, parameters)
    with torch.no_grad():
        for p in parameters.values():
            p += 0.5
    watcher.moved(parameters)
    found = watcher.found()
    mlp = found.modules.index("layers.0.mlp")
    inside = [n for n in f if "layers.0.mlp" in n or "layers.0.post_attention_layernorm" in n]
    a, b = (torch.cat([side[n].flatten() for n in inside]) for side in (f, r))
    assert found.cos[0, mlp] == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-5)
    assert found.update[0, mlp] == pytest.approx(0.5 * len(a) ** 0.5, rel=1e-5)
    of_mlp = np.array([module_of(p) == "layers.0.mlp" for p in units.places])
    assert found.projected[0, mlp] == pytest.approx(seen["projected"].numpy()[of_mlp].mean(), abs=1e-6)
    everything = np.linalg.norm(found.update[0])
    assert everything == pytest.approx(0.5 * sum(p.numel() for p in parameters.values()) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_step_of_an_update_is_noted_and_what_is_frozen_does_not_move(kind):
    task = made_task(kind)
    units = units_of(task.original.model, "row")
    role = torch.full_like(uniform(units), SHARED)
    still = [module_of(p) == "layers.0.mlp" for p in units.places]
    role[torch.tensor(still)] = FROZEN
    done = run(task, Rules(units, role, weight=2.0, both=True), config())
    found = done.conflicts
    assert found.update.shape == found.cos.shape == (done.steps, len(found.modules))
    mlp = found.modules.index("layers.0.mlp")
    assert (found.update[:, mlp] == 0).all() and (np.delete(found.update, mlp, 1).sum(1) > 0).all()
    assert (found.projected[:, mlp] == 0).all() and 0 <= found.projected.max() <= 1
    finite = found.cos[np.isfinite(found.cos)]
    assert len(finite) and (np.abs(finite) <= 1 + 1e-5).all()


def test_surgery_on_the_whole_vector_has_no_modules_to_note():
    task = made_task()
    out = cagrad(task, CagradConfig(max_steps=2, check_every=2, check_size=30, max_auc_drop=1, batch_size=16))
    assert out.details["conflicts"] is None and out.trace[-1]["cos_mean"] is not None


def test_the_lengths_are_of_what_the_weights_did():
    """Of plain gradient descent without looks on the way: rate times direction, step by step."""
    task = made_task()
    units = units_of(task.original.model, "row")
    rules = Rules(units, torch.full_like(uniform(units), SHARED), weight=2.0)
    lengths = []
    real = torch.optim.SGD.step

    def step(self, *rest, **more):
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        out = real(self, *rest, **more)
        by = [(p.detach() - b).square().sum() for p, b in zip(params, before, strict=True)]
        lengths.append(float(sum(by)) ** 0.5)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        done = run(task, rules, config(optimizer="sgd", lr=0.05))
    np.testing.assert_allclose(np.linalg.norm(done.conflicts.update, axis=1), lengths, rtol=1e-4)


def test_the_record_has_each_step_and_each_module():
    from types import SimpleNamespace

    task = made_task()
    units = units_of(task.original.model, "row")
    rules = Rules(units, torch.full_like(uniform(units), SHARED), weight=2.0)
    done = run(task, rules, config())
    details = {"update": done.config, "conflicts": done.conflicts}
    part = update_part(SimpleNamespace(details=details, stop_reason="", trace=()))["conflicts"]
    assert [s["step"] for s in part["steps"]] == [1, 2, 3, 4, 5]
    assert [m["module"] for m in part["modules"]] == list(done.conflicts.modules)
    total = sum(s["update"] ** 2 for s in part["steps"])
    assert total == pytest.approx(sum(m["update"] ** 2 for m in part["modules"]), rel=1e-5)
    assert (
        update_part(SimpleNamespace(details={"update": done.config}, stop_reason="", trace=()))["conflicts"]
        is None
    )


@pytest.mark.parametrize("projection", [None, "preconditioned"])
def test_what_is_frozen_has_no_say_in_a_module_s_cosine(projection):
    """Scaled as by AdamW its gradients are the larger ones, since it is damped by what never moved."""
    task = made_task()
    units = units_of(task.original.model, "row")
    parameters = dict(task.copy_of_model().named_parameters())
    generator = torch.Generator().manual_seed(0)
    role = torch.where(torch.rand(len(units.names), generator=generator) < 0.75, FROZEN, SHARED)
    rules = Rules(units, role, weight=2.0, both=True)
    f = {n: torch.randn(p.shape, generator=generator) for n, p in parameters.items()}
    moving = rules.moving(f)
    r = {n: f[n] - 2 * moving[n] for n in f}  # alike where frozen, opposite where not
    step = Combining(rules, config(projection=projection), parameters)
    seen = step.combine(list(f.values()), list(r.values()), 1.0)
    step.moved()
    found = step.conflicts.found()
    known = np.isfinite(found.cos[0])
    assert known.any() and found.cos[0][known] == pytest.approx(-1, abs=1e-5)
    assert found.projected[0][known] == pytest.approx(1)
    still = (role == FROZEN).numpy()
    assert seen["cos"].isnan().numpy()[still].all() and not seen["cos"].isnan().numpy()[~still].all()
