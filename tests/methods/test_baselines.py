"""What each baseline does to a small recommender: direction, exactness, stopping."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch

from curerec.methods import METHODS, RESTLESS, search_of
from curerec.methods.bad_teacher import BadTeacherConfig, bad_teacher
from curerec.methods.batches import Batches
from curerec.methods.cau.difficulty import gradient_conflict, nearness
from curerec.methods.e2urec import E2urecConfig, e2urec
from curerec.methods.finetune import FinetuneConfig, finetune
from curerec.methods.grad_ascent import GradAscentConfig, grad_ascent
from curerec.methods.label_flip import LabelFlipConfig, label_flip
from curerec.methods.loop import LoopConfig, descend, free, tuned_names
from curerec.methods.scrub import ScrubConfig, scrub
from curerec.methods.simnpo import SimnpoConfig, simnpo
from curerec.methods.stopping import Watch
from curerec.methods.task import Task
from curerec.methods.task_vector.method import TaskVectorConfig, negated, task_vector
from curerec.progress import Clock
from curerec.recommender.lora import factors_of, stacked, with_factors
from curerec.recommender.score import answer_logits, p_yes, score
from made_cases import few, soaked
from made_models import shaken
from made_steps import Steps
from made_tasks import made_task

LONG = {
    "lr": 3e-3,
    "max_steps": 24,
    "check_every": 24,
    "check_size": 60,
    "batch_size": 64,
    "max_auc_drop": 1,
    "average": 0.0,
}


def losses(task, model, part="forget"):
    prompts = task.encode(getattr(task, part))
    p = p_yes(score(model, prompts, task.answers))
    return -np.log(np.where(prompts.label == 1, p, 1 - p))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", soaked("lora")])
def test_ascent_raises_the_loss_and_fine_tuning_lowers_it(kind):
    task = made_task(kind)
    before = {part: losses(task, task.original.model, part).mean() for part in ("forget", "retain")}
    up = grad_ascent(made_task(kind), GradAscentConfig(**LONG))
    assert losses(task, up.model).mean() > before["forget"] + 0.05
    down = finetune(made_task(kind), FinetuneConfig(**LONG | {"max_steps": 60, "epochs": 6}))
    assert losses(task, down.model, "retain").mean() < before["retain"]
    pushed = simnpo(made_task(kind), SimnpoConfig(**LONG, weight=5.0))
    assert losses(task, pushed.model).mean() > before["forget"]


def test_flipped_answers_are_learnt():
    task = made_task()
    before = losses(task, task.original.model)
    flipped = label_flip(task, LabelFlipConfig(**LONG, weight=5.0))
    assert losses(task, flipped.model).mean() > before.mean() + 0.01


@pytest.mark.slow
def test_bad_teaching_nears_the_base_on_the_forget_set():
    task = made_task()
    prompts = task.encode(task.forget)
    base = p_yes(score(task.base_model(), prompts, task.answers))
    out = bad_teacher(task, BadTeacherConfig(**LONG, weight=0.9))
    far, near = (
        np.abs(p_yes(score(m, prompts, task.answers)) - base).mean() for m in (task.original.model, out.model)
    )
    assert near < 0.8 * far


def test_scrub_looks_after_whole_epochs_only():
    task = made_task()
    config = ScrubConfig(**LONG | {"max_steps": 1000, "check_every": 1}, epochs=3, max_epochs=1)
    out = scrub(task, config)
    n_forget = -(-len(task.forget) // 64)
    n_retain = -(-len(task.retain) // 64)
    ends = [0, *(n_forget + k * n_retain for k in (1, 2, 3))]
    steps = [row["step"] for row in out.trace]
    assert steps == ends[: len(steps)] and len(steps) > 1


def test_task_vector_of_one_is_theta_o_minus_the_difference():
    task = made_task()
    original, tuned = task.original.model, shaken(copy.deepcopy(task.original.model))
    state, other = original.state_dict(), tuned.state_dict()
    for alpha in (0.0, 1.0, 3.0):
        new = negated(original, tuned, alpha).state_dict()
        for name in state:
            torch.testing.assert_close(new[name], state[name] - alpha * (other[name] - state[name]))


def products(model):
    return {path: b @ a for path, (a, b) in factors_of(model).items()}


def test_task_vector_of_an_adapter_is_exact_on_the_products():
    task = made_task("lora")
    original, tuned = task.original.model, copy.deepcopy(task.original.model)
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if ".lora_" in name:
                p += 0.1 * torch.randn_like(p)
    old, moved = products(original), products(tuned)
    new = products(negated(original, tuned, 2.0))
    for path in old:
        torch.testing.assert_close(new[path], old[path] - 2 * (moved[path] - old[path]), atol=1e-6, rtol=1e-5)
    # A line in the factors is another thing.
    a, b = factors_of(original)["model.layers.0.self_attn.q_proj"]
    a2, b2 = factors_of(tuned)["model.layers.0.self_attn.q_proj"]
    wrong = (b - 2 * (b2 - b)) @ (a - 2 * (a2 - a))
    assert not torch.allclose(new["model.layers.0.self_attn.q_proj"], wrong, atol=1e-3)
    assert factors_of(negated(original, tuned, 2.0))["model.layers.0.self_attn.q_proj"][0].shape[0] == 6


def test_the_same_adapter_from_its_factors_and_from_too_many():
    task = made_task("lora")
    prompts = task.encode(task.valid)
    model = task.original.model
    want = score(model, prompts, task.answers)
    factors = factors_of(model)
    np.testing.assert_allclose(score(with_factors(model, factors), prompts, task.answers), want, atol=1e-5)
    many = stacked(*[(0.1, factors)] * 10)  # rank 30 in matrices of side 16
    assert max(a.shape[0] for a, _ in many.values()) == 16
    np.testing.assert_allclose(score(with_factors(model, many), prompts, task.answers), want, atol=1e-5)


def test_task_vector_keeps_the_largest_alpha_that_does_no_harm(monkeypatch):
    task = made_task()
    monkeypatch.setattr(Watch, "closed", lambda self, seen: False)
    looks = iter([False, False, True])
    monkeypatch.setattr(Watch, "harmed", lambda self, seen: next(looks))
    out = task_vector(task, TaskVectorConfig(check_size=60, alphas=(1.0, 2.0, 3.0, 4.0)))
    assert out.details["alpha"] == 2.0 and "alpha before is kept" in out.stop_reason
    assert [row["alpha"] for row in out.trace] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_e2urec_trains_an_adapter_alone(kind):
    task = made_task(kind)
    config = E2urecConfig(lr=1e-2, epochs=1, r=2, check_size=60, max_auc_drop=1, check_every=2)
    out = e2urec(task, config)
    assert "teacher" in out.details["stages"] and out.t_total_s > out.t_core_s
    if kind == "full":
        assert not hasattr(out.model, "peft_config")
        old = task.original.model.state_dict()
        for name, value in out.model.state_dict().items():
            if torch.equal(value, old[name]):
                assert "q_proj" not in name and "v_proj" not in name
            else:
                assert ("q_proj" in name or "v_proj" in name) and "weight" in name
                assert np.linalg.matrix_rank((value - old[name]).numpy(), tol=1e-5) <= 2
    first = -(-len(task.forget) // 16)
    assert min(row["step"] for row in out.trace[1:]) > first  # not judged while it only forgets
    assert losses(task, out.model).mean() > losses(task, task.original.model).mean()


def test_gradient_conflict_against_autograd():
    task = made_task()
    model = task.copy_of_model()
    params = free(model, tuned_names(model))

    def flat(batch, rows):
        logits = answer_logits(model, batch.ids[rows], batch.last[rows], task.answers)
        grads = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, batch.label[rows]), params)
        return torch.cat([g.reshape(-1) for g in grads])

    retain = Batches(task, task.sample(task.retain, 40, 63), 64, 0)
    whole = retain.at(np.arange(40))
    g_r = flat(whole, torch.arange(40))
    forget = Batches(task, task.forget, 64, 0).at(np.arange(12))
    want = [float(flat(forget, torch.tensor([k])) @ g_r / g_r.norm()) for k in range(12)]
    got = gradient_conflict(task, 40)
    assert got.shape == (len(task.forget),)
    np.testing.assert_allclose(got[:12], want, atol=2e-3 * np.abs(want).max())


def test_nearness_is_a_mean_cosine():
    task = made_task("lora")
    got = nearness(task, 50)
    assert got.shape == (len(task.forget),) and (np.abs(got) <= 1).all() and got.std() > 0
    task.retain = task.forget.take(np.array([3]))
    assert nearness(task, 50).argmax() == 3 and nearness(task, 50)[3] == pytest.approx(1)


def test_batches_pass_over_everything_once_an_epoch_and_keep_a_given_order():
    task = made_task()
    stream = Batches(task, task.forget, 7, 1)
    seen = np.concatenate([stream.next().index for _ in range(stream.per_epoch)])
    assert sorted(seen) == list(range(len(task.forget)))
    turned = Batches(task, task.forget, 7, 1, order=lambda rng: np.arange(len(task.forget))[::-1])
    assert list(turned.next().index) == list(range(len(task.forget)))[:-8:-1]
    batch = turned.at(np.array([2, 5]))
    np.testing.assert_array_equal(batch.label, task.forget.label[[2, 5]])


def zero(descent, step):
    return [torch.zeros_like(p) for p in descent.params], {}


def test_the_loop_gives_back_the_look_before_harm(monkeypatch):
    task = made_task()
    monkeypatch.setattr(Watch, "closed", lambda self, seen: False)
    looks = iter([False, True])
    monkeypatch.setattr(Watch, "harmed", lambda self, seen: next(looks))

    def one(descent, step):
        return [torch.ones_like(p) for p in descent.params], {}

    config = LoopConfig(**LONG | {"optimizer": "sgd", "lr": 0.01, "check_every": 1, "max_steps": 9})
    done = descend(task, config, one, momentum=0.0)
    assert "utility guard" in done.stop_reason and done.steps == 2
    for name, p in done.model.named_parameters():
        torch.testing.assert_close(p, dict(task.original.model.named_parameters())[name] - 0.01)


def test_the_loop_stops_when_the_gap_is_closed(monkeypatch):
    monkeypatch.setattr(Watch, "closed", lambda self, seen: True)
    done = descend(made_task(), LoopConfig(**LONG | {"check_every": 3}), zero)
    assert done.steps == 3 and "gap closed" in done.stop_reason
    monkeypatch.setattr(Watch, "closed", lambda self, seen: False)
    done = descend(made_task(), LoopConfig(**LONG | {"check_every": 5, "max_steps": 7}), zero)
    assert [row["step"] for row in done.trace] == [0, 5, 7] and "limit of 7" in done.stop_reason


@pytest.mark.slow_but("all")
@pytest.mark.parametrize("trains", [None, "all"])
def test_e2urec_trains_an_adapter_on_q_and_v_or_all_that_fine_tuning_changed(trains):
    """The embeddings, where a small model remembers most, are beyond the adapter's reach."""
    task = made_task("full")
    short = E2urecConfig(**LONG, trains=trains, teacher={"epochs": 1.0, "batch_size": 32, "lr": 1e-3})
    out = e2urec(task, short)
    old = dict(task.original.model.named_parameters())
    moved = {n for n, p in out.model.named_parameters() if not torch.equal(p, old[n])}
    embeddings = {n for n in moved if "embed_tokens" in n}
    projections = {n for n in moved if "q_proj" in n or "v_proj" in n}
    assert projections
    assert bool(embeddings) == (trains == "all")
    if trains is None:
        assert moved == projections
    else:
        assert out.n_trainable == sum(p.numel() for p in old.values())


def watched_draws(monkeypatch, method, config):
    """Of each step of a method, whether a batch of D_f was drawn."""
    task, steps, plain = made_task("full"), Steps(monkeypatch), Batches.next

    def next_batch(self):
        if self.examples is task.forget:
            steps.note("D_f")
        return plain(self)

    monkeypatch.setattr(Batches, "next", next_batch)
    METHODS[method][0](task, METHODS[method][1].model_validate(config))
    return [bool(noted) for noted in steps.noted]


LOOK = {"check_every": 2, "check_size": 40, "max_auc_drop": 1, "batch_size": 32}
RESTING = ("grad_diff", "label_flip", "bad_teacher", "simnpo", "cau", "scrub", "e2urec")


@pytest.mark.slow_but("simnpo", "label_flip")
@pytest.mark.parametrize("method", few(RESTING, ("grad_diff", "cau", "simnpo", "e2urec")))
def test_a_falling_rate_rests_the_forget_loss_while_the_gap_is_closed(method, monkeypatch):
    """All steps are taken then; without rest they would go on past what a retrain has."""
    steps = {} if method in ("scrub", "e2urec") else {"max_steps": 6}
    config = {**LOOK, **steps, "schedule": "linear"}
    shut = watched_draws(monkeypatch, method, {**config, "tolerance": 1.0})
    first = shut.index(False)  # after the first look, or an epoch on D_r
    assert any(shut[:first]) and not any(shut[first:])
    monkeypatch.undo()
    gaping = watched_draws(monkeypatch, method, {**config, "target": "half"} | {"tolerance": 0.0})
    assert sum(gaping) >= sum(shut) and len(gaping) == len(shut)


def test_only_methods_that_can_rest_are_tried_with_a_falling_rate():
    for method in METHODS:
        grid = search_of(method)
        if method in RESTLESS:
            assert "schedule" not in grid
        if method in RESTING:
            assert grid["schedule"] == ["constant", "linear"]
            # SCRUB's first gradient, which damping is a multiple of, is rounding.
            assert grid.get("damping") == (None if method == "scrub" else [0.0, 0.1])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("bad_teacher", {}),
        ("wise", {"answer": "base", "margin_scale": 0.01}),
        ("rome", {"answer": "base", "steps": 1, "covariance_size": 20}),
        ("apa", {"shards": 2, "valid_size": 20}),
    ],
)
def test_the_base_is_loaded_on_the_clock(method, settings, monkeypatch):
    """Of full fine-tuning that reads a file; nobody gets it for nothing."""
    running, loaded = [], []
    stage, load = Clock.stage, Task.base_model

    @contextlib.contextmanager
    def watched(clock, name, **options):
        running.append(name)
        with stage(clock, name, **options) as advance:
            yield advance
        running.pop()

    monkeypatch.setattr(Clock, "stage", watched)
    monkeypatch.setattr(Task, "base_model", lambda task: (loaded.append(tuple(running)), load(task))[1])
    run, config = METHODS[method]
    loop = {} if method == "apa" else {"check_size": 30, "max_auc_drop": 1}
    steps = {} if method in ("apa", "rome") else {"max_steps": 2, "check_every": 2}
    run(made_task(), config(**loop, **steps, **settings))
    assert loaded and all(loaded)
