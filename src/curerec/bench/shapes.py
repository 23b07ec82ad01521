"""Models of a known shape with random weights: what a method costs on a model that cannot be had here."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from curerec.data.output import replacing
from curerec.recommender.nano import nano_tokenizer
from curerec.recommender.storage import write_model

MARKER = "config.json"
#: Name -> (model type, configuration), as published with the weights.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-large": (
        "gpt2",
        {"n_embd": 1280, "n_layer": 36, "n_head": 20, "n_positions": 1024, "vocab_size": 50257},
    ),
    "llama-2-7b": (
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "vocab_size": 32000,
            "tie_word_embeddings": False,
        },
    ),
    # Small enough to try a recipe on any machine.
    "tiny": (
        "llama",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "vocab_size": 8000,
            "tie_word_embeddings": True,
        },
    ),
}


def made_shape(name: str, titles: list[str], folder: Path) -> Path:
    """A base model of a shape, made once: random weights in bfloat16 (float32 for ``tiny``).

    The vocabulary's size is the real model's, its words are the catalogue's: tokens a prompt, and with them
    times, come out near those of a real tokenizer but not equal to them.

    Args:
        name: key of :data:`SHAPES`.
        titles: of the catalogue.
        folder: to write; used as it is if it is there.
    """
    if (folder / MARKER).exists():
        return folder
    kind, options = SHAPES[name]
    tokenizer = nano_tokenizer(titles, max_words=options["vocab_size"])
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(kind, **options, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dtype = torch.float32 if name == "tiny" else torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with replacing(folder, marker=MARKER) as stage:
        write_model(model, tokenizer, stage)
    del model
    gc.collect()  # it holds references to itself: 13 GB would stay for some time
    return folder
