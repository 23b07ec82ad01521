"""Answers to aim for: what they are, how strong a calibrated teacher is, and an update that follows one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from curerec.methods import teachers
from curerec.methods.rules import Rules, uniform
from curerec.methods.teachers import calibrated, forgetting_teacher, targets
from curerec.methods.unlearn import UnlearnConfig, run
from curerec.recommender.score import score
from curerec.recommender.units import units_of
from made_cases import soaked
from made_tasks import made_task


def raised(n=40, strength=1.0):
    """theta_o's logits, those after more training on the labels, and the labels."""
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(n, 2, generator=generator)
    label = torch.randint(0, 2, (n,), generator=generator)
    onehot = F.one_hot(label, 2).float()
    return original, original + strength * (2 * onehot - 1) * torch.rand(n, 1, generator=generator), label


def test_a_calibrated_teacher_costs_what_unseen_data_do():
    original, more, label = raised()
    before = float(F.cross_entropy(original, label))
    for wanted in (before + 0.01, before + 0.3, before + 2.0):
        alpha = calibrated(original, more, label, wanted)
        found = float(F.cross_entropy(forgetting_teacher(original, more, alpha), label))
        assert found == pytest.approx(wanted, abs=1e-5)
        weaker = forgetting_teacher(original, more, 0.99 * alpha)
        assert float(F.cross_entropy(weaker, label)) < wanted


def test_nothing_is_taken_where_deleted_data_cost_as_much_already():
    original, more, label = raised()
    assert calibrated(original, more, label, float(F.cross_entropy(original, label)) - 0.1) == 0.0


def test_tuning_that_raised_nothing_ends_the_search():
    original, _, label = raised()
    assert calibrated(original, original, label, 9.0) == teachers.MOST


def test_label_free_aims_at_the_share_of_yes_of_those_who_stay():
    task = made_task("full")
    found = targets(task, "label_free").softmax(-1)
    assert torch.allclose(found[:, 1], torch.tensor(float(task.retain.label.mean())), atol=1e-6)


@pytest.mark.slow
def test_the_teacher_is_theta_o_less_what_tuning_on_d_f_raises(monkeypatch):
    task = made_task("full")
    strong = teachers.TUNING.model_copy(update={"lr": 3e-3, "epochs": 4.0})
    monkeypatch.setattr(teachers, "TUNING", strong)
    original = torch.from_numpy(task.forget_original)
    tuned = torch.from_numpy(score(teachers.augmented(task, strong), task.forget_prompts, task.answers))
    torch.testing.assert_close(targets(task, "teacher", alpha=3.0), forgetting_teacher(original, tuned, 3.0))
    torch.testing.assert_close(targets(task, "teacher"), forgetting_teacher(original, tuned, 2.0))
    label = torch.from_numpy(task.forget_prompts.label.astype(np.int64))
    assert F.cross_entropy(targets(task, "teacher"), label) > F.cross_entropy(original, label)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "aim"),
    [
        ("lora", "label_free"),
        ("full", "teacher"),
        soaked("lora", "calibrated"),
        soaked("full", "label_free"),
        soaked("lora", "teacher"),
        soaked("full", "calibrated"),
    ],
)
def test_an_update_nears_what_it_aims_for(kind, aim, monkeypatch):
    strong = teachers.TUNING.model_copy(update={"lr": 3e-3, "epochs": 4.0})
    monkeypatch.setattr(teachers, "TUNING", strong)
    task = made_task(kind)
    aimed = targets(task, aim, alpha=2.0)
    config = UnlearnConfig(
        forget_loss=aim, alpha=2.0 if aim == "teacher" else None, lr=1e-3, damping=0.3, max_steps=60,
        check_every=60, check_size=30, retain_weight=0.0, max_auc_drop=1, schedule="linear", batch_size=64,
    )  # fmt: skip
    units = units_of(task.original.model, "row")
    done = run(task, Rules(units, uniform(units), weight=0.0), config)

    def far(model):
        logits = torch.from_numpy(score(model, task.forget_prompts, task.answers))
        return float(
            F.kl_div(logits.log_softmax(-1), aimed.log_softmax(-1), log_target=True, reduction="batchmean")
        )

    before = far(task.original.model)
    assert before > 0 and far(done.model) < 0.7 * before
