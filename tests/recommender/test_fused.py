"""Activation functions in one kernel: the same answers, and the model's own modules afterwards."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import NewGELUActivation

from curerec.recommender.fused import fused_activations
from curerec.recommender.tune import TuneConfig, tune
from made_families import lora_on, made_family_model
from made_models import made_prompts


def written_out(model):
    return [m for m in model.modules() if type(m) is NewGELUActivation]


@pytest.mark.parametrize("model_type", ["gpt2", "phi"])
def test_the_same_values_and_gradients_and_everything_put_back(model_type):
    model = made_family_model(model_type, 50).double()  # in single precision rounding differs by machine
    before, ids = written_out(model), torch.arange(20)[None]
    assert before
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()

    def run():
        out = model(inputs_embeds=embeds).logits
        return out.detach(), torch.autograd.grad(out.square().sum(), embeds)[0]

    want = run()
    with pytest.raises(ZeroDivisionError), fused_activations(model):
        assert not written_out(model)
        torch.testing.assert_close(run(), want, atol=1e-10, rtol=1e-10)
        _ = 1 / 0
    assert all(a is b for a, b in zip(written_out(model), before, strict=True))


def test_not_where_something_listens():
    model = made_family_model("gpt2", 50)
    layers = len(written_out(model))
    handle = written_out(model)[0].register_forward_hook(lambda m, args, out: None)
    with fused_activations(model):
        assert len(written_out(model)) == 1
    handle.remove()
    assert len(written_out(model)) == layers


def test_in_half_precision_it_is_nearer_to_the_function():
    x = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    model = made_family_model("gpt2", 50).bfloat16()
    formula = written_out(model)[0](x.bfloat16())
    with fused_activations(model):
        assert not written_out(model)
        one = next(m for m in model.modules() if isinstance(m, torch.nn.GELU))(x.bfloat16())
    rounded = torch.nn.functional.gelu(x.bfloat16().double(), approximate="tanh")
    assert (one - rounded).abs().mean() < 0.7 * (formula - rounded).abs().mean()


def test_training_never_runs_the_formula(monkeypatch):
    prompts, encoder = made_prompts(8)
    model = lora_on(made_family_model("gpt2", len(encoder.tokenizer)).bfloat16())
    monkeypatch.setattr(NewGELUActivation, "forward", lambda self, x: pytest.fail("the formula was run"))
    tune(model, prompts, encoder.answers, TuneConfig(epochs=1, batch_size=4), seed=0)
    assert written_out(model)
