"""U-LiRA on planted margins, the shadows' halves, and that a stopped run goes on."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import norm

from curerec import shadows as module
from curerec.data.forget import draw_request
from curerec.data.readers import read
from curerec.data.request_file import read_request
from curerec.evaluation import METRICS
from curerec.evaluation.auc import auc
from curerec.evaluation.metric import evaluate
from curerec.evaluation.ulira import Shadows, fits, ratios
from curerec.opened import open_recommender
from curerec.shadows import halved, make_shadows, stored_in
from curerec.splitting import granted
from made_scene import made_scene


def world(*, memory: float, shadows: int = 16, n: int = 800, seed: int = 0):
    """Examples of very different hardness; what was trained on and unlearned keeps ``memory`` of a margin."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0, 3, n)
    inside = halved(n, shadows, seed=seed)
    margins = hardness + memory * inside + rng.normal(0, 0.5, (shadows, n))
    member = np.arange(n) < n // 2
    target = hardness + memory * member + rng.normal(0, 0.5, n)
    return target, margins, inside, member


@pytest.mark.parametrize("memory", [0.0, 0.5, 1.0])
def test_it_finds_the_planted_memory_whatever_the_hardness(memory):
    target, margins, inside, member = world(memory=memory, shadows=64)
    score = ratios(target, margins, inside)
    best = norm.cdf(memory / (0.5 * np.sqrt(2)))  # of an attacker who knows each example's distributions
    assert auc(score[member], score[~member]) == pytest.approx(best, abs=0.05)
    loss_attack = auc(target[member], target[~member])
    assert loss_attack < 0.5 + memory * 0.2  # drowned by the hardness


def test_sixteen_shadows_lose_little():
    target, margins, inside, member = world(memory=1.0, shadows=16)
    score = ratios(target, margins, inside)
    assert auc(score[member], score[~member]) > norm.cdf(1 / (0.5 * np.sqrt(2))) - 0.08


def test_parity_with_scipy_and_shrinkage_of_the_variance():
    target, margins, inside, _ = world(memory=1.0, shadows=32, n=20)
    mean, deviation = fits(margins, inside, prior=0.0)
    for k in range(20):
        one = margins[inside[:, k], k]
        assert (mean[k], deviation[k]) == pytest.approx((one.mean(), one.std(ddof=1)))
    expected = [
        norm.logpdf(target[k], *[f[k] for f in fits(margins, inside)])
        - norm.logpdf(target[k], *[f[k] for f in fits(margins, ~inside)])
        for k in range(20)
    ]
    assert ratios(target, margins, inside) == pytest.approx(expected)
    pooled = fits(margins, inside, prior=1e9)[1]
    assert np.ptp(pooled) == pytest.approx(0, abs=1e-6)
    few = fits(margins[:3], np.array([[True] * 20, [False] * 20, [False] * 20]))
    assert np.isnan(few[0]).all()


def test_halves_are_balanced_and_differ():
    inside = halved(101, 16, seed=3)
    assert (inside.sum(0) == 8).all()
    assert len({row.tobytes() for row in inside}) == 16


def test_the_metric_says_how_many_shadows_are_lacking():
    scene = made_scene()
    assert "0 of at least 16" in evaluate(METRICS["ulira_auc"], scene).missing
    rows = np.arange(5)
    inside = halved(10, 16, seed=0)
    made = Shadows(np.random.default_rng(0).normal(size=(16, 10)), inside, rows, rows)
    few = Shadows(made.margins[:9], inside[:9], rows, rows)
    assert "9 of at least 16" in evaluate(METRICS["ulira_auc"], replace(scene, shadows=few)).missing
    value = evaluate(METRICS["ulira_auc"], replace(scene, shadows=made))
    assert 0 <= value.low <= value.value <= value.high <= 1 and value.n == 10


@pytest.fixture
def opened(made_path, monkeypatch):
    monkeypatch.setenv("CUREREC_CACHE", str(made_path.folder / "cache"))
    got = open_recommender(made_path.full, read(made_path.data))
    return got, granted(got.data, got.recipe, got.split, read_request(made_path.request))


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(opened, tmp_path, monkeypatch):
    got, split = opened
    trained = []
    real = module.tune
    monkeypatch.setattr(module, "tune", lambda *a, **k: trained.append(1) or real(*a, **k))
    none = make_shadows(got, split, "finetune", tmp_path, count=4, budget_s=0.0)
    assert none.margins.shape[0] <= 1  # the budget is over once a shadow has begun
    first = make_shadows(got, split, "finetune", tmp_path, count=2)
    assert len(trained) == 2 and first.margins.shape == (2, len(first.forget) + len(first.control))
    again = make_shadows(got, split, "finetune", tmp_path, count=2)
    assert len(trained) == 2 and np.array_equal(again.margins, first.margins)
    for path in tmp_path.glob("finetune-*-1.safetensors"):
        path.write_bytes(path.read_bytes()[:20])  # damaged: that shadow alone is unlearned anew
    mended = make_shadows(got, split, "finetune", tmp_path, count=2)
    assert len(trained) == 2 and np.array_equal(mended.margins, first.margins)
    make_shadows(got, split, "retrain", tmp_path, count=2)
    assert len(trained) == 2  # another method takes the same originals
    names = {path.name for path in tmp_path.iterdir()}
    assert stored_in(tmp_path) == names and len(names) == 6
    for name in ("model.safetensors", f".tmp-{min(names)}-0123abcd"):
        (tmp_path / name).touch()
    assert stored_in(tmp_path) == names | {f".tmp-{min(names)}-0123abcd"}


@pytest.mark.slow
def test_no_shadow_sees_its_other_half(opened, tmp_path, monkeypatch):
    got, split = opened
    seen = []
    real = module.task_for
    monkeypatch.setattr(module, "task_for", lambda o, s, **k: seen.append(s) or real(o, s, **k))
    made = make_shadows(got, split, "finetune", tmp_path, count=2)
    targets = np.r_[split.forget.target[made.forget], split.control.target[made.control]]
    for part, inside in zip(seen, made.inside, strict=True):
        assert set(part.forget.target) == set(targets[inside])
        assert set(targets[~inside]) <= set(part.control.target)
        assert not set(part.retain.target) & set(targets)


def shadows_of(opened, request, folder, monkeypatch):
    """The tasks of two shadows that are neither trained nor unlearned but for a trace, and their files."""
    split = granted(opened.data, opened.recipe, opened.split, request)
    seen = []

    def method(task, config):
        seen.append(task)
        return SimpleNamespace(model=task.original.model)

    def touch(model, *args, **options):
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).add_(0.01)

    monkeypatch.setattr(module, "tune", touch)
    monkeypatch.setitem(module.METHODS, "finetune", (method, *module.METHODS["finetune"][1:]))
    make_shadows(opened, split, "finetune", folder, count=2)
    return split, seen, {path.name for path in folder.iterdir()}


def test_shadows_are_held_to_the_histories_they_were_trained_on(opened, tmp_path, monkeypatch):
    """Without the deleted items, and not those of before the request, which the attacked model saw."""
    got, _ = opened
    request = draw_request(got.data, got.split, kind="items", share=0.1)
    split, seen, _ = shadows_of(got, request, tmp_path, monkeypatch)
    assert (split.retain.history != split.retain_before.history).any()
    assert len(seen) == 2 and all(task.retain_before is task.retain is split.retain for task in seen)


def test_shadows_of_other_titles_are_made_anew(opened, tmp_path, monkeypatch):
    got, _ = opened
    request = draw_request(got.data, got.split, share=0.2)
    _, _, names = shadows_of(got, request, tmp_path, monkeypatch)
    title = got.data.titles["title"].to_pylist()
    titles = got.data.titles.set_column(1, "title", pa.array([*title[:-1], title[0]]))
    other = replace(got, data=replace(got.data, titles=titles))
    _, seen, both = shadows_of(other, request, tmp_path, monkeypatch)
    assert len(seen) == 2 and len(names) == 4 and len(both) == 8
