"""Every weight that fine-tuning can change belongs to exactly one unit, and to the right one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.errors import ModelError
from curerec.recommender.families import family_of
from curerec.recommender.units import units_of
from made_cases import every_pair
from made_families import HEADS, TYPES, lora_on, made_family_model, subsets
from made_models import made_encoder, made_model, with_lora

WORDS = len(made_encoder().tokenizer)
GRANULARITIES = ["row", "projection", "head_mlp"]


CASES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    *((t, {}) for t in TYPES if t != "llama"),
    *((t, {"tie_word_embeddings": t == "phi"}) for t in ("gpt2", "qwen3", "gemma2", "phi")),
]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_full_fine_tuning_covers_every_parameter_once(kind, options, granularity):
    model = made_family_model(kind, WORDS, **options)
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


@every_pair(kind=TYPES, which=[None, 0, 1, 2], granularity=GRANULARITIES)
def test_lora_covers_every_factor_once(granularity, kind, which):
    model = lora_on(made_family_model(kind, WORDS), None if which is None else subsets(kind)[which])
    units = units_of(model, granularity)
    named = [n for b in units.branches for n in (b.weight, b.factor)]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(named) == len(set(named)) and set(named) == set(parameters)
    for branch in units.branches:
        wanted = "lora_A" if branch.dim == 1 else "lora_B"
        assert wanted in branch.weight and wanted not in branch.factor
        assert branch.inputs is (branch.dim == 1)
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


@pytest.mark.parametrize("kind", ["gpt2", "phi3"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_fused_map_belongs_to_the_heads_by_its_parts(kind, lora):
    """GPT-2's c_attn holds queries, keys and values one after another, Phi-3's qkv_proj those of groups."""
    model = made_family_model(kind, WORDS)
    model = lora_on(model) if lora else model
    heads = np.repeat([f"layers.1.head.{h}" for h in range(HEADS)], 4)
    groups = np.repeat([f"layers.1.head.{h}" for h in ((0, 2) if kind == "phi3" else range(HEADS))], 4)
    units = units_of(model, "head_mlp")
    names = np.asarray(units.names)
    of = {b.module.split(".1.")[1]: b for b in units.branches if b.kind == "linear" and ".1." in b.module}
    fused, out = (
        ("attn.c_attn", "attn.c_proj") if kind == "gpt2" else ("self_attn.qkv_proj", "self_attn.o_proj")
    )
    assert names[of[fused].unit].tolist() == [*heads, *groups, *groups]
    assert names[of[out].unit].tolist() == heads.tolist()
    assert (of[fused].inputs, of[out].inputs) == (False, True)
    flipped = kind == "gpt2" and not lora
    assert (of[fused].dim, of[out].dim) == ((1, 0) if flipped else (0, 1))
    if lora:
        assert ".lora_B." in of[fused].weight and ".lora_A." in of[fused].factor
    by_part = units_of(model, "projection")
    branch = next(b for b in by_part.branches if b.module.endswith(f"1.{fused}"))
    parts = [by_part.names[k] for k in dict.fromkeys(branch.unit)]
    assert parts == [f"layers.1.{part}" for part in ("q_proj", "k_proj", "v_proj")]
    rows = units_of(model, "row")
    place = dict(zip(rows.names, rows.places, strict=True))
    assert place["layers.1.k_proj.row.5"].head == 1 and place["layers.0.v_proj.row.0"].module == "v_proj"
    assert not any("c_attn" in name or "qkv" in name for name in rows.names)


@pytest.mark.parametrize("kind", TYPES)
def test_zeroing_a_heads_values_silences_that_head_alone(kind):
    """The unit's slice of v found by name, set to 0: the slice of that head (and of its group) is 0."""
    from curerec.circuits.activations import recording, sites_of

    model = made_family_model(kind, WORDS)
    units = units_of(model, "row")
    family = family_of(model)
    sites = sites_of(model)
    heads, groups, width = family.heads(model)
    share = heads // groups
    member = {f"layers.0.v_proj.row.{r}" for r in range(width, 2 * width)}  # of the second group
    chosen = np.asarray([name in member for name in units.names])
    with torch.no_grad():
        for branch in units.branches:
            p = model.get_parameter(branch.weight)
            rows = torch.from_numpy(chosen[branch.unit])
            (p if branch.dim == 0 else p.T)[rows] = 0
        with recording(sites) as seen:
            model(torch.randint(0, WORDS, (2, 7)))
    size = sites.per_head(seen["layers.0.attn"]).abs().amax((0, 1, 3))
    assert (size == 0).tolist() == [h // share == 1 for h in range(heads)]


def test_norms_know_whether_they_serve_heads_or_mlp():
    blocks = {}
    for kind in TYPES:
        units = units_of(made_family_model(kind, WORDS), "row")
        blocks[kind] = {p.module: p.block for p in units.places if p.layer == 1 and "norm" in p.module}
        norms = [name for name, t in zip(units.names, units.types, strict=True) if t == "norm"]
        assert set(norms) >= {"norm"} and not any(".row." in name for name in norms)
    before = {"input_layernorm": "attn", "post_attention_layernorm": "mlp"}
    after = {"pre_feedforward_layernorm": "mlp", "post_feedforward_layernorm": "mlp"}
    heads = {"q_norm": "attn", "k_norm": "attn"}
    assert blocks["llama"] == blocks["phi3"] == before and blocks["qwen3"] == before | heads
    assert blocks["gemma2"] == before | after | {"post_attention_layernorm": "attn"}
    assert blocks["gemma3_text"] == blocks["gemma2"] | heads
    assert blocks["phi"] == {"input_layernorm": "both", "q_layernorm": "attn", "k_layernorm": "attn"}
    places = units_of(made_family_model("gpt2", WORDS), "row").places
    assert {p.module: p.block for p in places if p.module.startswith("ln_")} == {
        "ln_1": "attn",
        "ln_2": "mlp",
    }


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


def test_an_adapter_that_also_changes_something_else_is_refused():
    """What belongs to no unit would be changed by the fine-tuning and by nothing that forgets."""
    model = with_lora(made_model(WORDS, tied=False), ["q_proj", "lm_head"])
    with pytest.raises(ModelError, match="lm_head, which belongs to no unit"):
        units_of(model, "row")
