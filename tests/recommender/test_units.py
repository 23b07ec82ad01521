"""Every weight that fine-tuning can change belongs to exactly one unit, and to the right one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.errors import ModelError
from curerec.recommender.units import units_of
from made_models import ALL, made_encoder, made_model, with_lora

WORDS = len(made_encoder().tokenizer)
GRANULARITIES = ["row", "projection", "head_mlp"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"tied": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {"tied": False}),
    ],
)
def test_full_fine_tuning_covers_every_parameter_once(kind, options, granularity):
    model = made_model(WORDS, kind, **options)
    units = units_of(model, granularity)
    owner = {}
    for branch in units.branches:
        assert branch.factor is None
        before = owner.setdefault(branch.weight, branch)
        # Tied token embeddings are read twice; both readings are of the same units.
        assert before is branch or {before.kind, branch.kind} == {"embedding", "head"}
        np.testing.assert_array_equal(before.unit, branch.unit)
    parameters = dict(model.named_parameters())
    assert set(owner) == set(parameters)
    for name, p in parameters.items():
        branch = owner[name]
        assert len(branch.unit) == p.shape[branch.dim]
        assert branch.unit.min() >= 0 and branch.unit.max() < len(units.names)
    check(units)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"], ["down_proj", "o_proj"]])
def test_lora_covers_every_factor_once(granularity, targets):
    model = with_lora(made_model(WORDS), targets)
    units = units_of(model, granularity)
    named = [n for b in units.branches for n in (b.weight, b.factor)]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(named) == len(set(named)) and set(named) == set(parameters)
    for branch in units.branches:
        wanted = "lora_A" if branch.dim == 1 else "lora_B"
        assert wanted in branch.weight and wanted not in branch.factor
        assert len(branch.unit) == parameters[branch.weight].shape[branch.dim]
    check(units)


def check(units):
    used = np.unique(np.concatenate([b.unit for b in units.branches]))
    np.testing.assert_array_equal(used, np.arange(len(units.names)))  # no unit without a weight
    assert len(units.names) == len(set(units.names)) == len(units.places) == len(units.types)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("lora", [False, True])
def test_heads_own_their_slices_with_grouped_keys(kind, lora):
    model = made_model(WORDS, kind, heads=4, kv=2)
    width = model.model.layers[0].self_attn.head_dim
    model = with_lora(model) if lora else model
    units = units_of(model, "head_mlp")
    names = np.asarray(units.names)
    of = {b.module.split("layers.1.")[1]: b for b in units.branches if "layers.1." in b.module}
    heads = [f"layers.1.head.{h}" for h in range(4)]
    assert names[of["self_attn.q_proj"].unit].tolist() == np.repeat(heads, width).tolist()
    assert of["self_attn.o_proj"].dim == 1
    assert names[of["self_attn.o_proj"].unit].tolist() == np.repeat(heads, width).tolist()
    for short in ("k_proj", "v_proj"):  # a group of two query heads shares its keys; its first head owns them
        assert names[of[f"self_attn.{short}"].unit].tolist() == np.repeat(heads[::2], width).tolist()
    for short in ("gate_proj", "up_proj", "down_proj"):
        assert set(names[of[f"mlp.{short}"].unit]) == {"layers.1.mlp"}
    assert {units.places[k].head for k, n in enumerate(units.names) if ".head." in n} == {0, 1, 2, 3}
    assert set(units.types[[k for k, n in enumerate(units.names) if ".head." in n]]) == {"head"}


def test_changing_a_heads_unit_changes_that_head_alone():
    """The slices found by name agree with what the attention computes: zeroing a head's columns of o_proj."""
    from curerec.circuits.activations import recording, sites_of

    model = made_model(WORDS, layers=1)
    units = units_of(model, "head_mlp")
    ids = torch.randint(0, WORDS, (2, 7))
    sites = sites_of(model)
    with torch.no_grad(), recording(sites) as before:
        model(ids)
    branch = next(b for b in units.branches if b.module.endswith("q_proj"))
    with torch.no_grad():
        rows = torch.from_numpy(branch.unit == units.names.index("layers.0.head.2"))
        model.get_parameter(branch.weight)[rows] *= -3.0
        with recording(sites) as after:
            model(ids)
    moved = sites.per_head(after["layers.0.attn"] - before["layers.0.attn"]).abs().amax((0, 1, 3))
    assert (moved > 1e-4).tolist() == [False, False, True, False]


def test_rows_name_their_head_and_types_keep_maps_apart():
    units = units_of(made_model(WORDS), "row")
    place = dict(zip(units.names, units.places, strict=True))
    assert place["layers.0.q_proj.row.7"].head == 1 and place["layers.1.down_proj.row.7"].head is None
    kind = dict(zip(units.names, units.types, strict=True))
    assert kind["layers.0.q_proj.row.7"] == kind["layers.1.q_proj.row.0"] != kind["layers.0.k_proj.row.7"]
    assert f"embed_tokens.row.{WORDS - 1}" in place


def test_an_adapter_on_nothing_known_is_refused():
    model = with_lora(made_model(WORDS, tied=False), ["embed_tokens"])
    with pytest.raises(ModelError, match="no branch"):
        units_of(model, "row")
