"""The training loop: repeatable, learning, averaging, seeing every prompt once an epoch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curerec.recommender.score import score
from curerec.recommender.tune import Averager, TuneConfig, batches, endless, optimise, tune
from made_models import made_model, made_prompts, with_lora

PROMPTS, ENCODER = made_prompts(40)
MODEL = made_model(len(ENCODER.tokenizer))
CONFIG = TuneConfig(epochs=3, batch_size=8, lr=3e-3)


def loss(model):
    logits = torch.from_numpy(score(model, PROMPTS, ENCODER.answers))
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(PROMPTS.label.astype(np.int64))))


def tuned(seed=0, config=CONFIG, model=MODEL):
    return tune(copy.deepcopy(model), PROMPTS, ENCODER.answers, config, seed=seed)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("lora", [False, True])
def test_the_seed_decides_and_the_loss_falls(lora):
    start = with_lora(copy.deepcopy(MODEL)) if lora else MODEL
    before = torch.random.get_rng_state()
    one = tuned(1, model=start)
    assert (torch.random.get_rng_state() == before).all()  # nobody else's random numbers are used up
    torch.rand(3)
    assert torch.equal(weights(one), weights(tuned(1, model=start)))
    assert not torch.equal(weights(one), weights(tuned(2, model=start)))
    assert loss(one) < loss(start) - 0.05 and not one.training


def test_dropout_is_seeded_too():
    model = with_lora(copy.deepcopy(MODEL))
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(0.5)
    assert torch.equal(weights(tuned(model=model)), weights(tuned(model=model)))
    plain = tuned(model=with_lora(copy.deepcopy(MODEL)))
    assert not torch.equal(weights(plain), weights(tuned(model=model)))


def test_frozen_parameters_stay():
    model = with_lora(copy.deepcopy(MODEL))
    after = tuned(model=model)
    for (name, p), (_, q) in zip(model.named_parameters(), after.named_parameters(), strict=True):
        assert torch.equal(p, q) is not p.requires_grad, name


@given(st.lists(st.integers(1, 90), max_size=70), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_an_epoch_covers_every_prompt_once(lengths, size, pool, seed):
    lengths = np.asarray(lengths, int)
    made = batches(lengths, size, np.random.default_rng(seed), pool=pool)
    assert sorted(np.concatenate([*made, np.zeros(0, int)])) == list(range(len(lengths)))
    assert all(0 < len(b) <= size for b in made)
    again = batches(lengths, size, np.random.default_rng(seed), pool=pool)
    assert [b.tolist() for b in made] == [b.tolist() for b in again]


def test_batches_pad_little_and_epochs_differ():
    lengths = np.random.default_rng(0).integers(10, 100, 640)
    rng = np.random.default_rng(0)
    made = batches(lengths, 16, rng)
    padded = sum(len(b) * lengths[b].max() for b in made)
    assert padded < 1.1 * lengths.sum()
    stream = endless(lengths, 16, np.random.default_rng(0))
    first, second = (np.concatenate([next(stream) for _ in range(40)]) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(640)) and (first != second).any()


def test_batches_of_nothing_end():
    with pytest.raises(ValueError, match="no prompt"):
        next(endless(np.zeros(0, int), 16, np.random.default_rng(0)))


def test_the_average_against_a_plain_loop():
    p = torch.nn.Parameter(torch.zeros(3))
    average = Averager([p], 0.9)
    mean = np.zeros(3)
    for step in range(1, 200):
        with torch.no_grad():
            p.copy_(torch.tensor([1.0, step, np.sin(step)]))
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * p.detach().numpy()
    average.store()
    np.testing.assert_allclose(p.detach(), mean, rtol=1e-5)
    assert float(p.detach()[0]) == pytest.approx(1, abs=1e-6)  # the start is forgotten


def test_a_tuned_average_is_the_average_of_the_steps():
    seen, p = [], torch.nn.Parameter(torch.ones(2))

    def gradients(step):
        p.grad = torch.tensor([1.0, -2.0]) * (step + 1)

    config = TuneConfig(lr=0.1, optimizer="sgd", schedule="constant", warmup=0, ema=0.5, max_grad_norm=1e9)
    assert optimise([p], 5, gradients, config, after_step=lambda k: seen.append(p.detach().clone())) == 5
    mean = torch.ones(2)
    for k, value in enumerate(seen, start=1):
        decay = min(0.5, (1 + k) / (10 + k))
        mean = decay * mean + (1 - decay) * value
    torch.testing.assert_close(p.detach(), mean)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_warm_up_and_never_reach_zero(schedule):
    rates, p = [], torch.nn.Parameter(torch.zeros(1))
    config = TuneConfig(lr=1.0, optimizer="sgd", schedule=schedule, warmup=0.2, max_grad_norm=1e9)
    last = [0.0, 0.0]  # the weight and its momentum

    def gradients(step):
        p.grad = torch.ones(1)

    def after(step):
        momentum = 0.9 * last[1] + 1.0 if step > 1 else 1.0
        rates.append((last[0] - float(p.detach())) / momentum)
        last[:] = [float(p.detach()), momentum]

    optimise([p], 20, gradients, config, after_step=after)
    np.testing.assert_allclose(rates[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-4)
    if schedule == "constant":
        np.testing.assert_allclose(rates[4:], 1, rtol=1e-4)
    else:
        np.testing.assert_allclose(
            rates[4:], [0.5 * (1 + np.cos(np.pi * k / 16)) for k in range(16)], atol=1e-4
        )


def test_a_true_after_a_step_ends_the_loop():
    p, told = torch.nn.Parameter(torch.zeros(1)), []

    def gradients(step):
        p.grad = torch.ones(1)

    done = optimise(
        [p], 9, gradients, CONFIG, after_step=lambda k: k == 4, progress=lambda k, n: told.append((k, n))
    )
    assert done == 4 and told == [(1, 9), (2, 9), (3, 9), (4, 9)]
