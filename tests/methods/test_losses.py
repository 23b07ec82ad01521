"""Forget and retain losses against closed forms."""

from __future__ import annotations

import pytest
import torch

from curerec.methods.losses import AIMS, forget_loss, grad_ascent, kl_to, npo, rewind


def made(n=9):
    logits = torch.randn(n, 2, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, 2, (n,)), torch.randn(n, 2, dtype=torch.float64)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("beta", [0.01, 0.5, 4.5])
def test_npo_starts_with_the_gradient_of_gradient_ascent_whatever_beta(beta):
    logits, label, _ = made()
    start = gradient(npo(logits, label, logits.detach(), beta=beta), logits)
    torch.testing.assert_close(start, gradient(grad_ascent(logits, label), logits))
    onehot = torch.nn.functional.one_hot(label, 2).double()
    torch.testing.assert_close(start, (onehot - logits.softmax(-1)) / len(label))


def test_npo_becomes_gradient_ascent_as_beta_falls():
    logits, label, original = made()
    want = gradient(grad_ascent(logits, label), logits)
    gaps = [
        (gradient(npo(logits, label, original, beta=b), logits) - want).abs().max() for b in (1.0, 0.1, 1e-4)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4


def test_npo_weighs_each_example_by_how_much_of_it_is_left():
    logits, label, original = made()
    ratio = (logits.log_softmax(-1) - original.log_softmax(-1)).gather(1, label[:, None])[:, 0]
    left = 2 * torch.sigmoid(0.5 * ratio).detach()
    want = gradient((left * logits.log_softmax(-1).gather(1, label[:, None])[:, 0]).mean(), logits)
    torch.testing.assert_close(gradient(npo(logits, label, original, beta=0.5), logits), want)


def test_descending_the_forget_losses_makes_the_label_less_likely():
    for name in ("npo", "grad_ascent"):
        logits, label, original = made()
        step = gradient(forget_loss(name, logits, label, original, beta=0.5), logits)
        after = (logits - 0.1 * step).log_softmax(-1).gather(1, label[:, None])
        assert (after < logits.log_softmax(-1).gather(1, label[:, None])).all()


def test_weights_scale_examples():
    logits, label, original = made()
    weight = torch.rand(len(label), dtype=torch.float64)
    for name in ("npo", "grad_ascent"):
        one = torch.stack(
            [
                forget_loss(name, logits[k : k + 1], label[k : k + 1], original[k : k + 1], beta=0.5)
                for k in range(9)
            ]
        )
        got = forget_loss(name, logits, label, original, beta=0.5, weight=weight)
        torch.testing.assert_close(got, (one * weight).mean())


def test_kl_is_zero_only_at_the_reference_and_runs_from_it():
    logits, _, target = made()
    assert float(kl_to(target, target)) == pytest.approx(0, abs=1e-12)
    p, q = target.softmax(-1), logits.softmax(-1)
    torch.testing.assert_close(kl_to(logits, target), (p * (p / q).log()).sum(-1).mean())
    torch.testing.assert_close(gradient(kl_to(logits, target), logits), (q - p).detach() / len(q))


@pytest.mark.parametrize("labels", [torch.tensor([1]), torch.tensor([[1], [0]]), torch.tensor([1.0, 0.0])])
def test_shapes_and_types_are_checked_here(labels):
    """The import hook of conftest.py: a label of another length or kind would broadcast or be cast."""
    with pytest.raises(TypeError):
        rewind(torch.zeros(2, 2), labels, weight=torch.ones(2))


@pytest.mark.parametrize("aim", AIMS)
def test_losses_with_a_target_are_the_kl_to_it(aim):
    logits, label, target = made()
    found = forget_loss(aim, logits, label, torch.zeros_like(target), beta=0.5, target=target)
    torch.testing.assert_close(found, kl_to(logits, target))
