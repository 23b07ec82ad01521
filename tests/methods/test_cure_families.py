"""Every family goes the whole way: saved base, fine-tuning, saved recommender, circuit, groups, update."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from curerec import pipeline
from curerec.config import parse
from curerec.errors import ConfigError, ModelError
from curerec.models import fresh_model, logits_of
from curerec.opened import open_recommender
from curerec.prompts.encoding import Encoder
from curerec.recipe import Recipe
from curerec.recommender.families import family_of
from curerec.recommender.nano import nano_tokenizer
from curerec.recommender.storage import load_base, write_model
from curerec.records import ForgetRequest
from made_cases import soaked
from made_catalogue import made_catalogue
from made_families import TYPES, made_family_model

DATA = made_catalogue(24)
TITLES = DATA.titles["title"].to_pylist()
TUNING = {"epochs": 2, "batch_size": 32, "lr": 3e-3}
LOOK = {"max_steps": 2, "check_every": 2, "check_size": 30, "batch_size": 32, "max_auc_drop": 1}
RECIPE = {
    "split": {"train": 150, "other": 60},
    "cure": {
        "pairs": 12,
        "pair_pool": 40,
        "forget_size": 20,
        "control_size": 20,
        "draws": 8,
        "path_steps": 1,
        "update": LOOK,
    },
}


def made_qwen_tokenizer():
    """A byte-level one of Qwen's own class: transformers gives a folder of Qwen weights no other."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([*TITLES, *[" Yes No" for _ in range(200)]], trainer)
    model = json.loads(core.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return Qwen2Tokenizer(vocab=model["vocab"], merges=merges, pad_token="<|endoftext|>")


def base_of(model_type, folder, **options):
    tokenizer = made_qwen_tokenizer() if model_type.startswith("qwen") else nano_tokenizer(TITLES)
    write_model(made_family_model(model_type, len(tokenizer), scale=0.1, **options), tokenizer, folder)
    return folder


def opened_after(tmp_path, base, model, **cure):
    recipe = {**RECIPE, "model": {"base": str(base), "tuning": TUNING, **model}}
    recipe["cure"] = recipe["cure"] | cure
    recipe = parse(Recipe, recipe, where="test")
    made = pipeline.train(DATA, recipe, tmp_path / "recommender", base=base)
    return made, open_recommender(tmp_path / "recommender", DATA, base=base)


def frozen_parts(outcome, model):
    """(name, bool mask over the parameter) of everything whose unit is frozen."""
    units = outcome.details["units"]
    frozen = outcome.groups.role == "frozen"
    for branch in units.branches:
        p = model.get_parameter(branch.weight)
        shape = [-1 if d == branch.dim else 1 for d in range(p.ndim)]
        yield branch.weight, torch.from_numpy(frozen[branch.unit]).view(shape).expand(p.shape)


@pytest.mark.slow_but("gpt2-lora", "llama-full")
@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        *((t, "lora") if t in ("llama", "phi", "gpt2") else soaked(t, "lora") for t in TYPES),
        ("llama", "lora of the last layer"),
        soaked("gpt2", "lora of the last layer"),
        *((t, "full") if t in ("llama", "phi3", "gemma2") else soaked(t, "full") for t in TYPES),
    ],
)
def test_train_and_cure(model_type, kind, tmp_path):
    base = base_of(model_type, tmp_path / "base")
    model = {"kind": kind}
    if kind != "full":
        model = {"kind": "lora", "lora": {"r": 3, "alpha": 6} | ({"layers": 1} if kind != "lora" else {})}
    granularity = "row" if kind == "full" else "head_mlp"
    made, opened = opened_after(tmp_path, base, model, granularity=granularity)
    original = opened.recommender.model
    prompts = Encoder(made.tokenizer, made.template, TITLES)
    assert prompts.answers == opened.recommender.answers
    split = opened.split
    logits = [logits_of(opened.recommender, DATA, split.test, m) for m in (made.model, original)]
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)  # as trained, so loaded
    plain, _ = load_base(base)
    assert np.abs(logits_of(opened.recommender, DATA, split.test, plain) - logits[0]).max() > 1e-2

    before = {n: p.detach().clone() for n, p in original.named_parameters()}
    request = ForgetRequest("users", tuple(DATA.users[:3]))
    outcome, _ = pipeline.unlearn(opened, request, "cure", opened.recipe.cure)
    family = family_of(original)
    modules = family.module_names(original)
    if kind == "lora of the last layer":  # the circuit is sought among what can change
        modules = [name for name in modules if name.startswith("layers.1.")]
    assert set(outcome.circuit.modules) == set(modules)
    assert np.isfinite(outcome.circuit.scores).all() and len(outcome.circuit.core) > 0
    assert {"forget", "shared"} & set(outcome.groups.role)
    for name, p in original.named_parameters():
        assert torch.equal(p, before[name]), "the recommender itself was changed"
    after = dict(outcome.model.named_parameters())
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all("lora_" in n for n in changed) is (kind != "full")
    for name, mask in frozen_parts(outcome, outcome.model):
        name = name if name in after else "lm_head.weight"
        if name in after:
            assert torch.equal(before[name][mask], after[name][mask]), name
    assert np.isfinite(logits_of(opened.recommender, DATA, split.test, outcome.model)).all()
    saved = pipeline.save_unlearned(opened, outcome, request, tmp_path / "new")
    again = open_recommender(saved.path, DATA, base=base).recommender
    np.testing.assert_allclose(
        logits_of(again, DATA, split.test),
        logits_of(opened.recommender, DATA, split.test, outcome.model),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("gpt2", ["c_attn"]),
        ("gpt2", ["attn.c_proj"]),
        ("gpt2", ["mlp.c_proj", "c_fc"]),
        ("phi", ["dense", "fc1"]),
    ],
)
def test_lora_goes_where_the_recipe_says_and_nowhere_else(model_type, targets, tmp_path):
    """GPT-2 calls two maps of a layer c_proj."""
    base = base_of(model_type, tmp_path / "base")
    recipe = parse(Recipe, {"model": {"lora": {"r": 2, "targets": targets}}}, where="test")
    model = fresh_model(base, recipe.model, seed=0)
    paths = {p.path for t, p in family_of(model).projections.items() if t in targets}
    found = {n.split(".lora_")[0].split(".", 5)[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert {path for path in paths} == {next(p for p in paths if name.endswith(p)) for name in found}
    assert len(found) == len(paths)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_lora_on_the_last_layers_leaves_those_below_without_branches(model_type, tmp_path):
    base = base_of(model_type, tmp_path / "base")
    recipe = parse(Recipe, {"model": {"lora": {"r": 2, "layers": 1}, "dtype": "bfloat16"}}, where="test")
    model = fresh_model(base, recipe.model, seed=0)
    layers = family_of(model).layer_list(model)
    adapted = [any("lora_" in n for n, _ in layer.named_parameters()) for layer in layers]
    assert adapted == [False] * (len(layers) - 1) + [True]
    types = {("lora_" in name, p.dtype) for name, p in model.named_parameters()}
    assert types == {(False, torch.bfloat16), (True, torch.float32)}
    with pytest.raises(ModelError, match="layers"):
        more = {"model": {"lora": {"layers": len(layers) + 1}}}
        fresh_model(base, parse(Recipe, more, where="test").model, seed=0)
    with pytest.raises(ConfigError, match="dtype"):
        parse(Recipe, {"model": {"kind": "full", "dtype": "bfloat16"}}, where="test")


def test_gemma_2_is_loaded_with_eager_attention(tmp_path):
    base = base_of("gemma2", tmp_path / "base")
    assert load_base(base)[0].config._attn_implementation == "eager"
    base = base_of("gemma3_text", tmp_path / "other")
    assert load_base(base)[0].config._attn_implementation == "sdpa"
