"""Small language models and prompts for them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from curerec.circuits.activations import sites_of
from curerec.circuits.patching import patched_margins
from curerec.data.splits import examples
from curerec.prompts.encoding import Encoder, Prompts, queries
from curerec.recommender.nano import nano_tokenizer
from made_catalogue import made_catalogue, made_titles

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),  # biases on q, k and v
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),  # norms of heads, head width apart from d_model / heads
}


def made_encoder(template: str = "likes") -> Encoder:
    """Encoder of the made-up catalogue with its word-level tokenizer."""
    titles = list(made_titles().values())
    return Encoder(nano_tokenizer(titles), template, titles)


def made_prompts(n: int = 12, *, template: str = "likes", seed: int = 0) -> tuple[Prompts, Encoder]:
    """Prompts of different lengths, both labels, and their encoder."""
    data = made_catalogue()
    encoder = made_encoder(template)
    rows = np.random.default_rng(seed).permutation(len(data))
    part = examples(data, rows[: 4 * n])
    return encoder.encode(queries(data, part.take(np.arange(n)))), encoder


def other_titles(prompts: Prompts, words: int, *, seed: int = 0) -> Prompts:
    """The same prompts with some history tokens replaced, positions aligned."""
    rng = np.random.default_rng(seed)
    ids = prompts.ids.copy()
    for n, start, stop, position, _ in prompts.spans:
        if position >= 0 and rng.random() < 0.7:
            at = slice(prompts.offsets[n] + start, prompts.offsets[n] + stop)
            ids[at] = rng.integers(30, words, stop - start)
    return Prompts(ids, prompts.offsets, prompts.spans, prompts.label)


def falling(
    model: Any, clean: Prompts, corrupt: Prompts, answers: tuple[int, int]
) -> tuple[Prompts, Prompts]:
    """The pairs with the labels for which a random model's margin falls: circuits are judged on such."""
    nothing, everything = patched_margins(model, clean, corrupt, answers, [set(), set(sites_of(model).names)])
    label = np.where(everything < nothing, clean.label, 1 - clean.label).astype(clean.label.dtype)
    return replace(clean, label=label), replace(corrupt, label=label)


def made_model(
    vocabulary: int,
    kind: str = "llama",
    *,
    heads: int = 4,
    kv: int = 2,
    layers: int = 2,
    tied: bool = True,
    **more: Any,
) -> Any:
    """A random decoder of width 16 with grouped keys; weights large enough for logits to move."""
    config, model = KINDS[kind]
    made = config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=8 if kind == "qwen3" else 16 // heads,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
        **more,
    )
    torch.manual_seed(1)
    out = model(made).eval()
    shaken(out, 0.15)
    return out


def shaken(model: Any, scale: float = 0.05, *, seed: int = 2) -> Any:
    """The model with noise on every weight, in place: stands in for fine-tuning."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * torch.randn(p.shape, generator=generator)
    return model


def tuned_pair(model: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A changed copy of a model, and the state before."""
    base = {k: v.clone() for k, v in model.state_dict().items()}
    return shaken(copy.deepcopy(model)), base


def with_lora(model: Any, targets: list[str] = ALL, *, r: int = 3) -> Any:
    """The model with a LoRA adapter whose factors are both random, in eval mode."""
    config = LoraConfig(
        r=r, lora_alpha=2 * r, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(3)
    return get_peft_model(model, config).eval()
