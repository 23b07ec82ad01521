"""What examples wrote while they were trained on: read off waypoints, and taken back by an update."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from curerec import pipeline
from curerec.config import parse
from curerec.errors import ConfigError
from curerec.measuring import sizes_of
from curerec.methods.cure import CureConfig
from curerec.methods.written import written
from curerec.recipe import ModelConfig
from curerec.recommender import waypoints
from curerec.recommender.safety import metadata_of
from curerec.recommender.storage import CARD
from curerec.recommender.tune import TuneConfig, tune
from curerec.recommender.waypoints import Recorder
from curerec.splitting import granted
from curerec.workload import of_cure
from made_cases import soaked
from made_recommender import CURE, DATA, LOOK, USERS, opened, trained
from made_tasks import made_task

BACK = {"granularity": "row", "rolled_back": 0.3, "kept": {"forget": 0.4, "shared": 0.4}}


@pytest.fixture(scope="module", params=["full", "lora"])
def kept(request, tmp_path_factory):
    return trained(tmp_path_factory.mktemp(request.param), request.param, waypoints=[0.4, 1.0])


def task_of(folder, **more):
    at = replace(opened(folder), **more)
    return pipeline.task_for(at, granted(DATA, at.recipe, at.split, USERS), seed=0)


def config(**values):
    return CureConfig.model_validate({**CURE, **BACK, "update": {**LOOK, "open_gap": 0.2}} | values)


def whole(task):
    """A request for everything that was trained on: what all of it wrote is the change itself."""
    everything, none = task.retain, np.zeros(0, np.int64)
    return replace(task, forget=everything, retain=everything.take(none), shared={})


@pytest.mark.slow
@pytest.mark.parametrize("ema", [pytest.param(0.0, marks=pytest.mark.soak), 0.9])
def test_what_all_examples_wrote_is_what_training_changed(ema):
    """Planted: of a training whose every step is a waypoint, up to momentum, all of the change is found."""
    task = made_task()
    model, before = task.fresh(), dict(task.fresh().named_parameters())
    prompts = task.encode(task.retain)
    config = TuneConfig(
        epochs=24, batch_size=len(prompts), lr=5e-5, warmup=0.2, schedule="linear", ema=ema, max_grad_norm=1e9
    )
    recorder = Recorder([k / 24 for k in range(1, 25)])
    tune(model, prompts, task.answers, config, seed=0, recorder=recorder)
    passed = recorder.waypoints()
    assert len(passed) == 24

    class Passed:
        def read(self):
            return passed

    request = whole(replace(task, waypoints=Passed()))
    found = written(request, size=10_000)
    change = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    assert set(found) == set(change)
    a, b = (torch.cat([v[n].flatten() for n in sorted(change)]) for v in (found, change))
    assert torch.cosine_similarity(a, b, dim=0) > 0.95
    assert 0.8 < a.norm() / b.norm() < 1.25


def test_examples_add_up(kept):
    """Of two parts of the training data each wrote its share of what both did."""
    task = task_of(kept)
    both = written(whole(replace(task, retain=task.retain_before)), size=10_000)
    half = len(task.retain) // 2
    mine = np.arange(half), np.arange(half, len(task.retain))
    first, second = (
        replace(task, forget=task.retain_before.take(a), retain=task.retain_before.take(b), shared={})
        for a, b in (mine, mine[::-1])
    )
    parts = [written(one, size=10_000) for one in (first, second)]
    for name, value in both.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value, atol=1e-5, rtol=1e-3)


def test_it_is_what_single_examples_say_one_by_one(kept):
    """Parity with plain transformers and autograd, from the tensors of the file."""
    task = task_of(kept)
    found = written(task, size=10_000)
    tensors = load_file(kept / waypoints.FILE)
    masses = [one.mass for one in task.waypoints.read()]
    model = task.copy_of_model()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameters[name]) for name in found}
    n = len(task.forget) + len(task.retain)
    for k, mass in enumerate(masses):
        for name in found:
            parameters[name].data.copy_(tensors[f"{k}.weights.{name}"])
            parameters[name].requires_grad_(True)
        for e in range(len(task.forget)):
            one = task.encode(task.forget.take(np.array([e])))
            ids = torch.from_numpy(one.ids.astype(np.int64))[None]
            z = model(input_ids=ids).logits[0, -1, list(task.answers)]
            loss = -z.log_softmax(0)[int(task.forget.label[e])]
            grads = torch.autograd.grad(loss, [parameters[name] for name in found])
            for name, g in zip(found, grads, strict=True):
                scale = tensors[f"{k}.scale.{name}"]
                total[name] -= torch.where(scale > 0, mass * g / n / (scale + 1e-8), 0)
    for name, value in found.items():
        torch.testing.assert_close(value, total[name].detach(), atol=1e-6, rtol=1e-3)
    assert any((v != 0).any() for v in found.values())


def test_steps_are_shared_out_by_their_rates_and_what_the_average_holds():
    recorder = Recorder([0.25, 0.5, 1.0])
    recorder.names = ["w"]
    rates = np.array([0.5, 0.5, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0])
    recorder.begin(rates, np.full(8, 0.5))
    assert recorder.steps == [2, 4, 8]
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([p], lr=0.5)
    for step in range(1, 9):
        p.grad = torch.ones(1)
        optimizer.step()
        recorder(step, optimizer, torch.tensor(4.0 if step == 4 else 0.1))
    # Steps 1 to 3 are nearest to the first (the third no farther from the second), 4 to 6 to the second.
    assert [one.mass for one in recorder.waypoints()] == pytest.approx([0.65, 0.25 / 4, 0.05])


def test_a_recorder_that_saw_no_step_has_nothing():
    assert Recorder([0.5]).waypoints() == []


def test_a_moment_that_has_just_begun_is_not_divided_by():
    recorder = Recorder([0.5, 1.0])
    recorder.names = ["w"]
    recorder.begin(np.ones(2), np.ones(2))
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([p], lr=0.1)
    for step, gradient in ((1, [1e-9, 0.0]), (2, [1.0, 0.0])):
        p.grad = torch.tensor(gradient)
        optimizer.step()
        recorder(step, optimizer, torch.tensor(0.0))
    first, last = recorder.waypoints()
    assert torch.equal(first.scale["w"], last.scale["w"]) and first.scale["w"][0] > 0.5
    assert first.scale["w"][1] == 0 and not torch.equal(first.weights["w"], last.weights["w"])


def test_training_ends_with_the_same_bits(kept, tmp_path):
    kind = kept.name.split("-")[0]
    shutil.copytree(kept.parent / "base", tmp_path / "base")
    plain = trained(tmp_path, kind)
    file = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    assert (plain / file).read_bytes() == (kept / file).read_bytes()
    assert not (plain / waypoints.FILE).exists() and opened(plain).waypoints is None
    assert task_of(kept).waypoints.count == 2 == len(task_of(kept).waypoints.read())


@pytest.mark.slow_but("full")
def test_nothing_else_passes_for_them(kept, tmp_path):
    """Those of other weights, also with their digest in the card; a damaged file; one that is gone."""
    kind = kept.name.split("-")[0]
    shutil.copytree(kept.parent / "base", tmp_path / "base")
    other = trained(tmp_path, kind, seed=1, waypoints=[0.4, 1.0])
    mine = shutil.copytree(kept, tmp_path / "mine")
    whole_file = (mine / waypoints.FILE).read_bytes()
    assert task_of(mine).waypoints.read() is not None
    (mine / waypoints.FILE).write_bytes((other / waypoints.FILE).read_bytes())
    assert task_of(mine).waypoints.read() is None
    card = json.loads((mine / CARD).read_text())
    theirs = json.loads((other / CARD).read_text())[waypoints.DIGEST]
    (mine / CARD).write_text(json.dumps({**card, waypoints.DIGEST: theirs}))
    assert task_of(mine).waypoints.read() is None
    (mine / CARD).write_text(json.dumps(card))
    for damaged in (whole_file[:-4], b"", whole_file[:-4] + b"\0\0\0\1", whole_file + b"\0" * 8):
        (mine / waypoints.FILE).write_bytes(damaged)
        assert written(task_of(mine), size=100) is None
    (mine / waypoints.FILE).unlink()
    assert written(task_of(mine), size=100) is None


def first(tensors):
    return next(iter(tensors))


@pytest.mark.parametrize(
    "changed",
    [
        lambda tensors, about: tensors.update({"0.mass.w": torch.ones(1)}),
        lambda tensors, about: tensors.update({"nothing": torch.ones(1)}),
        lambda tensors, about: tensors.update({"7" + first(tensors)[1:]: torch.ones(1)}),
        lambda tensors, about: tensors.pop(first(tensors)),
        lambda tensors, about: tensors.update({first(tensors): torch.ones(1)}),
        lambda tensors, about: about.update(masses="3"),
        lambda tensors, about: about.update(masses='["much", 1]'),
        lambda tensors, about: about.update(masses="[" * 100_000),
        lambda tensors, about: about.pop("weights"),
    ],
)
def test_a_file_that_was_made_to_mislead_is_none(kept, tmp_path, changed):
    """Its digest in the card, as whoever can write the one file can write the other."""
    mine = shutil.copytree(kept, tmp_path / "mine")
    shutil.copytree(kept.parent / "base", tmp_path / "base")
    tensors = load_file(mine / waypoints.FILE)
    about = dict(metadata_of((mine / waypoints.FILE).read_bytes()))
    changed(tensors, about)
    save_file(tensors, mine / waypoints.FILE, about)
    digest = hashlib.sha256((mine / waypoints.FILE).read_bytes()).hexdigest()
    card = json.loads((mine / CARD).read_text())
    (mine / CARD).write_text(json.dumps({**card, waypoints.DIGEST: digest}))
    assert task_of(mine).waypoints.read() is None


@pytest.mark.slow_but("full")
def test_neither_an_unlearned_recommender_nor_a_retrain_nor_another_model_has_any(kept):
    at = opened(kept)
    kind = kept.name.split("-")[0]
    outcome, _ = pipeline.unlearn(at, USERS, "cure")
    pipeline.save_unlearned(at, outcome, USERS, kept.parent / "new")
    again = trained(kept.parent, kind, without=USERS, waypoints=[0.4, 1.0])
    for folder in (kept.parent / "new", again):
        assert not (folder / waypoints.FILE).exists()
        assert waypoints.DIGEST not in json.loads((folder / CARD).read_text())
        assert opened(folder).waypoints is None
    swapped = replace(at.recommender, model=opened(kept).recommender.model)
    assert task_of(kept, recommender=swapped).waypoints is None


@pytest.mark.slow_but("full-cure")
@pytest.mark.parametrize("method", ["cure", soaked("random_modules")])
def test_an_update_takes_a_part_of_it_back(kept, method):
    at = opened(kept)
    found = {part: pipeline.unlearn(at, USERS, method, config(written=part))[0] for part in (None, 0.5, 1.0)}
    assert "written" not in found[None].details
    said = found[0.5].details["written"]
    assert said["part"] == 0.5 and said["weights"] > 0
    back = found[0.5].details["rolled_back"]
    if method == "random_modules":
        assert said["weights"] == back["weights"]
    trainable = sum(p.numel() for p in found[None].model.parameters() if p.requires_grad)
    assert said["weights"] <= back["share"] * trainable
    without, *others = ([p.detach() for p in one.model.parameters()] for one in found.values())
    assert all(any((p != q).any() for p, q in zip(without, other, strict=True)) for other in others)


@pytest.mark.slow_but("full")
def test_without_waypoints_nothing_differs(kept):
    at = replace(opened(kept), waypoints=None)
    plain, asked = (pipeline.unlearn(at, USERS, "cure", config(written=part))[0] for part in (None, 0.5))
    assert "written" not in asked.details
    for a, b in zip(plain.model.parameters(), asked.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_plan_counts_its_passes(kept):
    task = task_of(kept)
    with_it, without = (of_cure(config(written=part), sizes_of(task)) for part in (0.5, None))
    more = [w for w in with_it["groups"] if w not in without["groups"]]
    assert [(w.kind, w.times) for w in more] == [("copy", 1), ("gradient", 2)]
    none = replace(sizes_of(task), waypoints=0)
    assert of_cure(config(written=0.5), none) == of_cure(config(), none)


def test_small_requests_do_without(kept):
    task = task_of(kept)
    small = config(written=0.5, update={**LOOK, "open_gap": 0.2, "small": {"below": 0.9}})
    assert small.written_for(1, 99) is None and small.written_for(95, 5) == 0.5
    assert of_cure(small, sizes_of(task))["groups"] == of_cure(config(), sizes_of(task))["groups"]


def test_settings_that_cannot_be_are_refused():
    for wrong in ([0.5, 0.2], [0.0, 0.5], [0.5, 1.5], []):
        with pytest.raises(ConfigError):
            parse(ModelConfig, {"waypoints": wrong}, where="test")
    with pytest.raises(ConfigError, match="AdamW"):
        parse(ModelConfig, {"waypoints": [0.5], "tuning": {"optimizer": "sgd"}}, where="test")
    with pytest.raises(ConfigError, match="rolled_back"):
        parse(CureConfig, {"written": 0.5}, where="test")
    assert "waypoints" not in ModelConfig().model_dump() and "written" not in CureConfig().model_dump()
