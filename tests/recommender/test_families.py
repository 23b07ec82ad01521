"""Every family's file says what its model is, and a model that is otherwise is refused."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from curerec.errors import ModelError
from curerec.recommender import families
from curerec.recommender.families import FAMILIES, family_of
from curerec.recommender.families.structure import check_structure
from curerec.recommender.score import answer_logits, to_batch
from curerec.recommender.tune import TuneConfig, tune
from made_families import (
    HEADS,
    MODEL_TYPES,
    TYPES,
    family_of_type,
    left_padded,
    lora_on,
    made_family_model,
)
from made_models import made_prompts

PROMPTS, ENCODER = made_prompts(9)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CPU = torch.device("cpu")


def whole(model, ids, last):
    return model(input_ids=ids).logits[torch.arange(len(ids)), last][:, list(ANSWERS)]


def test_every_covered_type_is_put_to_the_test():
    put = {MODEL_TYPES.get(t, t) for t in TYPES}
    assert sorted(put) == sorted(t for family in FAMILIES for t in family.model_types)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("state", ["plain", "lora", "merged", "bfloat16", "eager", "training"])
def test_the_structure_is_what_the_family_says(model_type, state):
    model = made_family_model(model_type, WORDS, attention="eager" if state == "eager" else None)
    if state in ("lora", "merged"):
        model = lora_on(model)
        if state == "merged":
            model.merge_adapter()
    if state == "bfloat16":
        model = model.bfloat16()
    model.train(state == "training")
    before = torch.random.get_rng_state()
    check_structure(model)
    assert model.training is (state == "training")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (torch.random.get_rng_state() == before).all()


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("lora", [False, True])
def test_the_answers_are_those_of_the_whole_model_with_padding_on_either_side(model_type, lora):
    model = made_family_model(model_type, WORDS)
    model = lora_on(model) if lora else model
    index = np.arange(len(PROMPTS))
    assert len(set(PROMPTS.lengths)) > 3
    ids, last = to_batch(PROMPTS, index, CPU)
    moved, end, mask = left_padded(PROMPTS, index, pad=5)
    with torch.no_grad():
        want = torch.cat([whole(model, *to_batch(PROMPTS, index[[n]], CPU)) for n in index])
        right = answer_logits(model, ids, last, ANSWERS)
        left = answer_logits(model, moved, end, ANSWERS, mask=mask)
        embeds = model.get_input_embeddings()(moved)
        by_embedding = answer_logits(model, moved, end, ANSWERS, inputs_embeds=embeds, mask=mask)
    torch.testing.assert_close(right, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(left, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_embedding, want, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert (answer_logits(model, moved, end, ANSWERS) - want).abs().max() > 1e-3  # the mask is needed


def test_what_gemma_2_caps_needs_eager_attention():
    assert family_of_type("gemma2").attention == "eager"
    ids, last = to_batch(PROMPTS, np.arange(3), CPU)
    capped, free = (made_family_model("gemma2", WORDS, attn_logit_softcapping=c) for c in (0.3, None))
    with torch.no_grad():
        gap = answer_logits(capped, ids, last, ANSWERS) - answer_logits(free, ids, last, ANSWERS)
    assert gap.abs().max() > 1e-3


@pytest.mark.parametrize("model_type", TYPES)
def test_attention_is_what_transformers_chooses_where_the_family_does_not(model_type):
    model = made_family_model(model_type, WORDS, attention=family_of_type(model_type).attention or "sdpa")
    plain = AutoModelForCausalLM.from_config(type(model.config)(**model.config.to_dict()))
    kinds = [m.config._attn_implementation for m in (model, plain)]
    assert kinds == ["eager" if model_type == "gemma2" else "sdpa"] * 2


def test_an_unknown_type_is_refused_by_name():
    model = made_family_model("llama", WORDS)
    model.config.model_type = "bloom"
    with pytest.raises(ModelError, match=r"'bloom' is not supported.*llama.*gpt2.*gemma2.*phi3"):
        check_structure(model)


def refused(model, match):
    with pytest.raises(ModelError, match=match) as caught:
        check_structure(model)
    assert family_of(model).model_types and repr(model.config.model_type) in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize("model_type", TYPES)
def test_a_layer_that_scales_what_it_adds_is_refused(model_type, monkeypatch):
    model = made_family_model(model_type, WORDS)
    layer = family_of(model).layer_list(model)[1]
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x, *a, **k: x + 0.9 * (forward(x, *a, **k) - x))
    refused(model, "final norm")


@pytest.mark.parametrize("model_type", TYPES)
def test_an_embedding_that_is_changed_on_its_way_is_refused(model_type):
    model = made_family_model(model_type, WORDS)
    first = family_of(model).layer_list(model)[0]
    first.register_forward_pre_hook(lambda module, args: (1.2 * args[0], *args[1:]))
    refused(model, "before layer 0")


@pytest.mark.parametrize("model_type", TYPES)
def test_heads_that_mix_are_refused(model_type):
    """Heads whose outputs are put together in another order than the slices, and heads of another width."""
    model = made_family_model(model_type, WORDS)
    family = family_of(model)
    layer = family.layer_list(model)[1]
    out, heads = layer.get_submodule(family.attention_out), family.heads(model)[0]

    def rolled(module, args):
        return (args[0].unflatten(-1, (heads, -1)).roll(1, 2).flatten(-2),)

    handle = out.register_forward_pre_hook(rolled)
    refused(model, "of another")
    handle.remove()
    check_structure(model)
    model = made_family_model(model_type, WORDS)
    model.config.num_attention_heads *= 2
    if getattr(model.config, "head_dim", None):
        model.config.head_dim //= 2
    refused(model, "outputs of|of another|does not read")


@pytest.mark.parametrize("order", list(itertools.permutations(["q_proj", "k_proj", "v_proj"]))[1:])
@pytest.mark.parametrize("model_type", ["gpt2", "phi3", "llama", "phi"])
def test_parts_under_the_wrong_names_are_refused(model_type, order, monkeypatch):
    """Queries called keys, fused or not: even where all parts are of one size, what they do tells."""
    kv = {} if model_type == "gpt2" else {"num_key_value_heads": HEADS}
    model = made_family_model(model_type, WORDS, **kv)
    family = family_of(model)
    wrong = dict(zip(["q_proj", "k_proj", "v_proj"], order, strict=True))
    projections = {
        name: replace(p, parts=tuple(wrong.get(part, part) for part in p.parts))
        for name, p in family.projections.items()
    }
    monkeypatch.setattr(families, "FAMILIES", (replace(family, projections=projections),))
    refused(model, "of another|values")


@pytest.mark.parametrize("model_type", TYPES)
def test_a_parameter_that_no_unit_knows_is_refused(model_type):
    model = made_family_model(model_type, WORDS)
    family = family_of(model)
    attention = family.projections[next(iter(family.projections))].path.split(".")[0]
    layer = family.layer_list(model)[0]
    layer.get_submodule(attention).gate = torch.nn.Linear(4, 4)
    refused(model, f"layer 0 has a parameter {attention}.gate")


@pytest.mark.parametrize(("heads", "kv"), [(1, 1), (2, 1), (6, 1), (6, 3), (7, 7)])
def test_any_number_of_heads(heads, kv):
    """Heads are told apart by the digits of their numbers, whatever the number."""
    options = {"num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": 4}
    model = made_family_model("qwen3", WORDS, **options)
    check_structure(model)
    if heads > 1:
        out = model.model.layers[0].self_attn.o_proj
        turn = [*range(heads - 2), heads - 1, heads - 2]  # the last two change places
        out.register_forward_pre_hook(lambda m, a: (a[0].unflatten(-1, (heads, 4))[:, :, turn].flatten(-2),))
        refused(model, "of another")


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi"])
def test_queries_keys_and_values_of_another_input_are_refused(model_type, monkeypatch):
    """Edge scores take it that they read the norm's output as it is."""
    model = made_family_model(model_type, WORDS)
    attention = model.get_decoder().layers[1].self_attn
    forward = attention.forward

    def scaled(hidden_states, *args, **kwargs):
        return forward(0.3 * hidden_states, *args, **kwargs)

    monkeypatch.setattr(attention, "forward", scaled)
    refused(model, r"self_attn\.q_proj of layer 1 does not read what input_layernorm gives")


@pytest.mark.parametrize("model_type", TYPES)
def test_an_mlp_of_another_input_is_refused(model_type):
    model = made_family_model(model_type, WORDS)
    family_of(model).layer_list(model)[1].mlp.register_forward_pre_hook(lambda m, args: (0.3 * args[0],))
    refused(model, r"mlp of layer 1 does not read what \w+ gives")


NORMS = {
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "gemma2": [
        *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"),
        *("post_feedforward_layernorm", "norm"),
    ],
    "phi": ["input_layernorm", "final_layernorm"],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("model_type", "name"), [(t, n) for t, names in NORMS.items() for n in names])
def test_a_norm_of_another_formula_is_refused(model_type, name, dtype):
    """One that divides by the mean size, and one that has no eps."""
    model = made_family_model(model_type, WORDS).to(dtype)
    family = family_of(model)
    for owner in (family.layer_list(model)[1], family.decoder(model)):
        if hasattr(owner, name):
            break
    whole = getattr(owner, name)
    kind = type(whole)

    class OddNorm(kind):
        def forward(self, x):
            wide = x.float()
            return super().forward(x) * (wide.square().mean(-1, keepdim=True).sqrt() / wide.abs().mean()).to(
                x.dtype
            )

    whole.__class__ = OddNorm
    refused(model, rf"{name}.* is neither a LayerNorm nor an RMS norm")
    whole.__class__ = kind
    check_structure(model)
    if hasattr(whole, "variance_epsilon"):
        del whole.variance_epsilon
        whole.forward = lambda x: x
        refused(model, rf"{name}.* is neither a LayerNorm nor an RMS norm")


def test_a_norm_that_does_not_read_what_the_heads_write_is_refused():
    model = made_family_model("gemma2", WORDS)
    norm = model.get_decoder().layers[0].post_attention_layernorm
    norm.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    refused(model, "post_attention_layernorm of layer 0 does not read what the heads write")


def test_cross_attention_is_refused():
    refused(made_family_model("gpt2", WORDS, add_cross_attention=True), "crossattention")


def test_a_weight_that_is_not_read_as_the_family_says_is_refused():
    """Square matrices stored the other way round have the same shape: only the sum over slices tells."""
    model = made_family_model("gpt2", WORDS)
    out = model.transformer.h[1].attn.c_proj
    out.forward = lambda x: x @ out.weight.T + out.bias
    refused(model, "do not sum to the attention's output")


def test_heads_that_write_nothing_are_no_reason_to_refuse():
    model = made_family_model("llama", WORDS)
    planted = copy.deepcopy(model)
    with torch.no_grad():
        for layer in planted.model.layers:
            layer.self_attn.o_proj.weight[:, 4:].zero_()
            layer.mlp.down_proj.weight.zero_()
    check_structure(planted)
    with torch.no_grad():
        for layer in planted.model.layers:
            layer.self_attn.v_proj.weight.zero_()
    check_structure(planted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", TYPES)
def test_heads_of_very_different_sizes_are_no_reason_to_refuse(model_type, dtype):
    """Real models hold heads that write next to nothing and tokens whose state dwarfs the others'."""
    model = made_family_model(model_type, WORDS)
    family = family_of(model)
    with torch.no_grad():
        for layer in family.layer_list(model):
            p = next(p for p in family.projections.values() if "v_proj" in p.parts)
            weight = layer.get_submodule(p.path).weight
            weight = weight.T if family.transposed else weight
            weight[-family.heads(model)[2] :] *= 1e3  # the values of the last group
        model.get_input_embeddings().weight[3] *= 1e3
    check_structure(model.to(dtype))


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("lora", [False, True])
def test_training_with_gradient_checkpointing_is_training(model_type, lora):
    """With an adapter the embedding is frozen: a checkpoint that needs its gradient would train nothing."""
    start = made_family_model(model_type, WORDS)
    start = lora_on(start) if lora else start
    config = TuneConfig(epochs=1, batch_size=4, lr=1e-2)
    plain, saving = copy.deepcopy(start), copy.deepcopy(start)
    saving.activation_checkpointing_enable()
    layers = []  # a layer that is checkpointed runs its forward twice
    first = family_of(saving).layer_list(saving)[0].get_submodule(family_of(saving).attention_in)
    first.register_forward_hook(lambda *_: layers.append(1))
    for model in (plain, saving):
        tune(model, PROMPTS, ANSWERS, config, seed=0)
    assert len(layers) == 2 * 3
    for (name, p), (_, q), (_, r) in zip(
        *(m.named_parameters() for m in (plain, saving, start)), strict=True
    ):
        torch.testing.assert_close(q, p, atol=1e-5, rtol=1e-4, msg=name)
        assert torch.equal(p, r) is not p.requires_grad or "bias" in name, name
