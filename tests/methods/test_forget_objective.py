"""The forget loss over all of D_f, units by their share of its gradient, and the pace of the push."""

from __future__ import annotations

import importlib
import types
import weakref

import numpy as np
import pytest
import torch

from curerec import pipeline
from curerec.methods import METHODS
from curerec.methods.cure import gradient_share
from curerec.methods.cure.gradient_share import at_original, gradient_shares
from curerec.methods.forget_objective import ForgetObjective
from curerec.methods.loop import free, tuned_names
from curerec.methods.rules import Rules, uniform
from curerec.methods.unlearn import UnlearnConfig, run
from curerec.recommender.tune import TuneConfig, optimise
from curerec.recommender.units import inner_products, units_of
from made_tasks import made_task, short_cure


def objective_of(task, loss="rewind"):
    return ForgetObjective(task, UnlearnConfig(forget_loss=loss))


@pytest.mark.slow_but("rewind-*", "*-full")
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("loss", ["rewind", "npo", "grad_ascent", "label_free", "calibrated"])
def test_gradient_by_batches_is_that_of_the_mean_loss(kind, loss):
    task = made_task(kind)
    objective = objective_of(task, loss)
    model = task.copy_of_model()
    params = free(model, tuned_names(model))
    index = np.arange(len(objective.prompts))
    whole = torch.autograd.grad(objective.loss(model, index), params)
    gradient, mean = objective.gradient(model, params, batch_size=5)
    assert mean == pytest.approx(float(objective.loss(model, index).detach()), rel=1e-4, abs=1e-6)
    for found, wanted in zip(gradient, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    some = index[::3]
    wanted = torch.autograd.grad(objective.loss(model, some), params)
    for found, one in zip(objective.gradient(model, params, some, batch_size=4)[0], wanted, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("granularity", ["row", "projection", "head_mlp"])
def test_inner_products_add_up_to_that_of_the_whole(granularity):
    """Every parameter of full fine-tuning belongs to exactly one unit, tied embeddings once."""
    model = made_task("full").copy_of_model()
    units = units_of(model, granularity)
    generator = torch.Generator().manual_seed(0)
    a, b = (
        {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()} for _ in range(2)
    )
    total = sum(float((a[n] * b[n]).sum()) for n in a)
    assert float(inner_products(units, a, b).sum()) == pytest.approx(total, rel=1e-4, abs=1e-2)


def test_shares_are_the_gradients_squared_lengths():
    task = made_task("full")
    objective, units = objective_of(task), units_of(task.original.model, "row")
    share, resampled = gradient_shares(objective, units, size=10_000, draws=5, seed=0)
    model = task.copy_of_model()
    names = tuned_names(model)
    grads = dict(zip(names, objective.gradient(model, free(model, names))[0], strict=True))
    wanted = inner_products(units, grads, grads).numpy()
    assert resampled is None  # all of D_f: known, not estimated
    assert share.sum() == pytest.approx(1)
    np.testing.assert_allclose(share, wanted / wanted.sum(), rtol=1e-3, atol=1e-9)


def test_a_sample_of_the_deleted_data_gives_resamples_around_its_shares():
    task = made_task("full")
    objective, units = objective_of(task), units_of(task.original.model, "projection")
    share, resampled = gradient_shares(objective, units, size=len(objective.prompts) - 1, draws=400, seed=0)
    assert resampled.shape == (400, len(units.names))
    np.testing.assert_allclose(resampled.sum(1), 1)
    top = np.argsort(-share)[:3]
    low, high = np.percentile(resampled[:, top], [1, 99], axis=0)
    assert (low < high).all() and (low < share[top] * 1.2).all() and (high > share[top] * 0.8).all()


@pytest.mark.parametrize("size", [2, 5, 8])
def test_a_sample_of_few_has_no_empty_parts(size):
    """An empty one counted as a gradient of 0: of four examples, half of what weights are chosen by."""
    task = made_task("full")
    objective, units = objective_of(task), units_of(task.original.model, "projection")
    _, resampled = gradient_shares(objective, units, size=size, draws=20, seed=0)
    np.testing.assert_allclose(resampled.sum(1), 1)  # of nothing but empty parts there would be no shares
    chosen = np.random.default_rng([0, 72]).choice(len(objective.prompts), size, replace=False)
    model = task.copy_of_model()
    names = tuned_names(model)
    wanted, _ = objective.gradient(model, free(model, names), chosen)
    for name, one in zip(names, wanted, strict=True):
        torch.testing.assert_close(objective.at_original[name], one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["rewind", "npo", "grad_ascent"])
def test_both_answers_are_pushed_alike_however_rare_one_is(loss):
    """Else forgetting moves P(yes) towards the rarer answer."""
    task = made_task("full")
    label = task.forget_prompts.label
    rare = np.flatnonzero(label == 1)[:3]
    task.forget = task.forget.take(np.sort(np.r_[np.flatnonzero(label == 0), rare]))
    task.__dict__.pop("forget_prompts")
    objective = objective_of(task, loss)
    residual = 1 - objective.original.softmax(-1).gather(1, objective.label[:, None])[:, 0]
    push = objective.weight * (1 if loss == "rewind" else residual)
    no, yes = (float(push[objective.label == answer].sum()) for answer in (0, 1))
    assert no == pytest.approx(yes, rel=1e-5)


@pytest.mark.parametrize("loss", ["rewind", "npo", "grad_ascent"])
def test_a_request_of_one_answer_is_pushed_as_hard_as_one_of_both(loss):
    task = made_task("full")
    only = np.flatnonzero(task.forget_prompts.label == 0)
    task.forget = task.forget.take(only)
    task.__dict__.pop("forget_prompts")
    balanced = objective_of(task, loss).weight
    plain = ForgetObjective(task, UnlearnConfig(forget_loss=loss, balance=False)).weight
    torch.testing.assert_close(balanced, plain)


def test_weights_stay_finite_where_the_original_is_sure_of_everything():
    task = made_task("full")
    label = torch.from_numpy(task.forget_prompts.label.astype(np.int64))
    sure = torch.zeros(len(label), 2)
    sure[torch.arange(len(label)), label] = 120.0
    objective = objective_of(task, "npo")
    objective.original = sure
    assert objective._weights().isfinite().all()


def test_damping_holds_back_parameters_with_little_gradient():
    def moved(damping):
        p = torch.nn.Parameter(torch.zeros(2))

        def gradients(step):
            p.grad = torch.tensor([1.0, 1e-4])

        config = TuneConfig(lr=0.1, schedule="constant", warmup=0, max_grad_norm=float("inf"))
        optimise([p], 3, gradients, config, damping=damping)
        return p.detach().abs()

    plain, damped = moved(0.0), moved(0.1)
    assert plain[1] == pytest.approx(float(plain[0]), rel=1e-2)  # Adam's steps know no size
    assert damped[1] < 0.01 * damped[0] and damped[0] > 0.5 * plain[0]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_update_takes_the_whole_gradient_as_often_as_it_says(kind, monkeypatch):
    task = made_task(kind)
    taken = []
    real = ForgetObjective.gradient

    def spied(*args, **options):
        taken.append(args)
        return real(*args, **options)

    monkeypatch.setattr(ForgetObjective, "gradient", spied)
    config = UnlearnConfig(
        forget_loss="rewind",
        schedule="linear",
        batch_size=8,
        max_steps=7,
        check_every=3,
        check_size=40,
        forget_every=3,
        retain_labels=0.1,
        damping=0.1,
        paced=True,
    )
    model = task.copy_of_model()
    units = units_of(model, "projection")
    done = run(task, Rules(units, uniform(units)), config)
    assert len(taken) == 3 and done.steps == 7
    assert all("push" in point and np.isfinite(point["forget_loss"]) for point in done.trace[1:])
    before = dict(task.original.model.named_parameters())
    assert any((p != before[n]).any() for n, p in done.model.named_parameters())


def test_of_each_two_parts_the_inner_product_is_taken_once(monkeypatch):
    task = made_task()
    objective, units = ForgetObjective.of(task, UnlearnConfig()), units_of(task.original.model, "projection")
    size, calls, plain = len(objective.prompts) - 1, [], gradient_share.inner_products
    want = at_original(objective, size=size, seed=0)
    want = torch.stack([torch.stack([plain(units, a, b) for b in want]) for a in want])
    want = want.double().numpy().mean((0, 1))
    monkeypatch.setattr(gradient_share, "inner_products", lambda *a: calls.append(1) or plain(*a))
    share, _ = gradient_shares(objective, units, size=size, draws=5, seed=0)
    assert len(calls) == 36
    np.testing.assert_array_equal(share, np.maximum(want, 0) / np.maximum(want, 0).sum())


def test_the_gradient_that_chooses_weights_is_gone_before_the_update(monkeypatch):
    """It is as large as the model, and the request's objective lives on."""
    refs, plain = [], gradient_share.at_original

    def noted(objective, **options):
        found = plain(objective, **options)
        refs.extend(map(weakref.ref, objective.at_original.values()))
        return found

    def run(*args, **options):
        assert refs and all(ref() is None for ref in refs)
        raise InterruptedError

    monkeypatch.setattr(gradient_share, "at_original", noted)
    monkeypatch.setattr(importlib.import_module("curerec.methods.cure.weights"), "at_original", noted)
    monkeypatch.setattr(importlib.import_module("curerec.methods.cure.method"), "run", run)
    with pytest.raises(InterruptedError):
        METHODS["cure"][0](made_task(), short_cure().model_copy(update={"saliency": 0.1}))


def test_the_base_s_weights_are_read_into_main_memory(monkeypatch):
    seen = []

    def load_base(folder, *, device, dtype):
        seen.append(torch.device(device).type)
        raise InterruptedError

    monkeypatch.setattr(pipeline, "device", lambda: torch.device("cuda"), raising=False)
    monkeypatch.setattr(pipeline, "check_lengthened", lambda opened, split: None)
    monkeypatch.setattr(pipeline.storage, "load_base", load_base)
    recipe = types.SimpleNamespace(model=types.SimpleNamespace(kind="full"))
    with pytest.raises(InterruptedError):
        pipeline.task_for(types.SimpleNamespace(recipe=recipe, base=None), None, seed=0)
    assert seen == ["cpu"]
