"""The core circuit is sought among what a request can change, and every unit belongs to what it serves."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from curerec.circuits.belonging import in_core, modules_with_units
from curerec.circuits.core import find_core
from curerec.circuits.patching import patched_margins
from curerec.errors import ModelError
from curerec.methods import METHODS, CureConfig
from curerec.methods.cure.method import explain
from curerec.recommender.families import family_of
from curerec.recommender.units import units_of
from made_core import found_circuit
from made_families import TYPES, lora_on, made_family_model
from made_models import falling, made_model, made_prompts, other_titles, with_lora
from made_tasks import made_task

PROMPTS, ENCODER = made_prompts(12)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
SMALL = {"pairs": 12, "pair_pool": 20, "control_size": 30, "draws": 4, "path_steps": 1}


@pytest.mark.parametrize("granularity", ["row", "projection", "head_mlp"])
@pytest.mark.parametrize("model_type", TYPES)
def test_modules_with_units_are_those_that_units_would_be_inside_of(model_type, granularity):
    """By the other function: a circuit of one module holds a unit exactly where the module has one."""
    models = [
        made_family_model(model_type, 60),
        lora_on(made_family_model(model_type, 60), layers=(1,)),
        lora_on(made_family_model(model_type, 60), ("down_proj",)) if model_type == "llama" else None,
    ]
    for model in models:
        if model is None:
            continue
        units = units_of(model, granularity)
        within = [p.layer is not None for p in units.places]
        names = modules_with_units(model)
        every = family_of(model).module_names(model)
        for name in every:
            circuit = found_circuit((every.index(name),), modules=every)
            assert (name in names) == bool(in_core(circuit, units)[within].any()), name


@pytest.mark.parametrize("granularity", ["row", "projection", "head_mlp"])
@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_outside_the_core_is_told_by_who_uses_it(model_type, granularity):
    model = made_family_model(model_type, 60)
    units, names = units_of(model, granularity), family_of(model).module_names(model)
    circuit = found_circuit((names.index("layers.0.mlp"),), modules=names)
    inside = dict(zip(units.names, in_core(circuit, units), strict=True))
    assert inside["norm"] and all(inside[n] for n in inside if n.startswith("embed_"))
    assert not any(inside[n] for n in inside if n.startswith("layers.1."))
    mlp = {n for n in inside if n.startswith("layers.0.") and inside[n]}
    norms = {
        "phi": {"input_layernorm"},  # read by both
        "gpt2": {"ln_2"},
        "gemma2": {"pre_feedforward_layernorm", "post_feedforward_layernorm"},
    }
    norms["gemma3_text"] = norms["gemma2"]
    kept = {n.removeprefix("layers.0.") for n in mlp if "ln_" in n or "norm" in n}
    assert kept == norms.get(model_type, {"post_attention_layernorm"})
    rest = {n.split(".row.")[0].removeprefix("layers.0.") for n in mlp} - kept
    gated = {"gate_proj"} if model_type not in ("gpt2", "phi") else set()
    assert rest == ({"mlp"} if granularity == "head_mlp" else {"up_proj", "down_proj"} | gated)


@pytest.mark.parametrize("model_type", ["smollm2", "llama", "phi3"])
def test_keys_and_values_are_inside_where_a_head_that_uses_them_is(model_type):
    model = made_family_model(model_type, 60)
    family, units = family_of(model), units_of(model, "row")
    names, (n_heads, n_kv, width) = family.module_names(model), family.heads(model)
    for head in range(n_heads):
        circuit = found_circuit((names.index(f"layers.0.head.{head}"),), modules=names)
        inside = {n for n, i in zip(units.names, in_core(circuit, units), strict=True) if i}
        group = head * n_kv // n_heads
        for part in ("k_proj", "v_proj"):
            rows = {int(n.split(".")[-1]) for n in inside if n.startswith(f"layers.0.{part}.row.")}
            assert rows == set(range(group * width, (group + 1) * width)), (head, part)


def test_of_heads_as_units_those_without_one_are_not_sought_among():
    """An adapter on keys and values alone: a core of heads that have no unit would freeze everything."""
    model = with_lora(made_model(60), ["k_proj", "v_proj"])
    units = units_of(model, "head_mlp")
    found = modules_with_units(model, "head_mlp")
    assert found == units.names == tuple(f"layers.{k}.head.{h}" for k in (0, 1) for h in (0, 2))
    assert len(modules_with_units(model, "row")) == len(modules_with_units(model)) == 8


@pytest.mark.slow
def test_what_a_circuit_is_sought_among_is_all_that_is_patched():
    model = made_model(WORDS, layers=3)
    among = modules_with_units(lora_on(made_model(WORDS, layers=3), layers=(2,)))
    assert among == tuple(n for n in family_of(model).module_names(model) if n.startswith("layers.2."))
    clean, corrupt = falling(model, PROMPTS, other_titles(PROMPTS, WORDS), ANSWERS)
    circuit = find_core(model, clean, corrupt, ANSWERS, among=among, threshold=0.5, draws=4, seed=3)
    assert circuit.modules == among and circuit.scores.shape == (len(clean), len(among))
    assert len(circuit.core) > 0 and len(circuit.order) == len(among)
    assert circuit.fixed == 2 * len(among)
    judge = np.random.default_rng([3, 41]).permutation(len(clean))[len(clean) // 2 :]
    inside = {circuit.modules[k] for k in circuit.core}
    full, empty, kept = patched_margins(
        model, clean.take(judge), corrupt.take(judge), ANSWERS, [set(), set(among), set(among) - inside]
    ).mean(1)
    assert circuit.faithfulness == pytest.approx((kept - empty) / (full - empty), abs=1e-4)
    whole = find_core(model, clean, corrupt, ANSWERS, draws=4)
    again = find_core(model, clean, corrupt, ANSWERS, among=whole.modules, draws=4)
    assert again.core == whole.core and again.fixed == whole.fixed == 0


@pytest.mark.slow_but("1")
@pytest.mark.parametrize("layer", [0, 1])
def test_an_adapter_on_one_layer_leaves_something_to_update(layer):
    """The core of the whole model may lie in the other layer; every unit was frozen then."""
    task = made_task("lora", layers=(layer,))
    config = CureConfig(**SMALL, faithfulness=0.5, kept={"forget": 0.5, "shared": 0.5})
    config = config.model_copy(update={"update": config.update.model_copy(update={"max_steps": 2})})
    circuit, units, groups = explain(task, config)
    assert {name.split(".")[1] for name in circuit.modules} == {str(layer)}
    assert (groups.role != "frozen").any() and len(units.names) == len(groups.role)
    outcome = METHODS["cure"][0](task, config)
    after = dict(outcome.model.named_parameters())
    changed = [n for n, p in task.original.model.named_parameters() if not torch.equal(p, after[n])]
    assert changed and all(f"layers.{layer}." in n and "lora_" in n for n in changed)


def test_an_update_of_nothing_is_refused(monkeypatch):
    task = made_task("lora")
    frozen = lambda circuit, units: np.zeros(len(units.names), bool)  # noqa: E731
    monkeypatch.setattr(import_module("curerec.methods.cure.method"), "in_core", frozen)
    with pytest.raises(ModelError, match="no weight that may change"):
        METHODS["cure"][0](task, CureConfig(**SMALL))
