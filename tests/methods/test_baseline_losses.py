"""Losses and teachers of the baselines against worked numbers and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from curerec.methods.scrub.method import distill, phases
from curerec.methods.simnpo.method import simnpo_loss
from curerec.methods.teachers import forgetting_teacher

LOGITS = torch.tensor([[0.3, -0.7], [2.0, 1.0], [-4.0, 5.0], [0.0, 0.0]], dtype=torch.float64)
LABEL = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(("beta", "margin"), [(4.5, 0.0), (1.0, 0.3)])
def test_simnpo_loss_and_gradient(beta, margin):
    z = LOGITS.clone().requires_grad_()
    loss = simnpo_loss(z, LABEL, beta=beta, margin=margin)
    p = np.asarray(LOGITS.softmax(-1))
    nll = -np.log(p[np.arange(4), LABEL])
    s = 1 / (1 + np.exp(-beta * (nll - margin)))
    assert float(loss.detach()) == pytest.approx(np.mean(-(2 / beta) * np.log(s)))
    # d loss / d nll = -2 (1 - s): learnt examples (small NLL) are pushed, forgotten ones left alone.
    onehot = np.eye(2)[LABEL]
    want = (-2 * (1 - s))[:, None] * (p - onehot) / 4
    (got,) = torch.autograd.grad(loss, z)
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_descending_simnpo_raises_the_loss_on_the_answer():
    z = LOGITS.clone().requires_grad_()
    (g,) = torch.autograd.grad(simnpo_loss(z, LABEL, beta=4.5), z)
    before, after = (F.cross_entropy(x, LABEL, reduction="none") for x in (z, z - 0.1 * g))
    assert (after >= before).all() and (after > before).any()


def test_distillation_of_scrub():
    target = torch.tensor([[1.0, -1.0], [0.5, 0.2]], dtype=torch.float64)
    z = torch.tensor([[0.0, 0.5], [0.4, 0.2]], dtype=torch.float64, requires_grad=True)
    t = 2.0
    q, p = (np.exp(np.asarray(x.detach()) / t) for x in (target, z))
    q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
    loss = distill(z, target, t)
    assert float(loss.detach()) == pytest.approx(
        t**2 * np.mean((q * np.log(q / p)).sum(1))
    )  # KL(teacher || student)
    assert float(distill(target, target, t)) == pytest.approx(0, abs=1e-12)
    # Ascending leaves the teacher, descending nears it.
    (g,) = torch.autograd.grad(loss, z)
    assert distill(z + 0.1 * g, target, t) > loss > distill(z - 0.1 * g, target, t)
    # T^2: for a high T the gradient is that of half the squared distance of centred logits, whatever T is.
    gradients = [torch.autograd.grad(distill(z, target, t), z)[0] for t in (100.0, 1000.0)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-4)


def test_phases_of_scrub():
    assert phases(2, 3, epochs=3, max_epochs=2) == [*["max"] * 2, *["min"] * 3] * 2 + ["min"] * 3
    assert phases(2, 3, epochs=1, max_epochs=0) == ["min"] * 3


def test_forgetting_teacher_lowers_what_tuning_raised():
    original = torch.tensor([[1.0, 2.0]])
    augmented = torch.tensor([[0.5, 3.0]])  # tuning on the data raised " Yes" by 1 and lowered " No"
    torch.testing.assert_close(
        forgetting_teacher(original, augmented, 2.0), torch.tensor([[1.0, 2.0 - 2 * 1.0]])
    )
    torch.testing.assert_close(forgetting_teacher(original, original, 2.0), original)
