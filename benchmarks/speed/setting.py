"""Model and prompts that the scripts share: MovieLens-100K, nano or any base by name or folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from peft import LoraConfig, get_peft_model

from curerec.data.fetch import load
from curerec.models import device
from curerec.prompts.encoding import Encoder, Prompts, Queries, queries
from curerec.recipes import load_recipe
from curerec.recommender import bases, lora, storage
from curerec.recommender.families import family_of
from curerec.recommender.nano import nano_model, nano_tokenizer
from curerec.splitting import split_of


@dataclass(frozen=True)
class Setting:
    """A model to train or score, and prompts; ``lists`` are of 100 candidates for one history each."""

    model: Any
    answers: tuple[int, int]
    train: Prompts
    test: Prompts
    lists: Prompts


def setting(
    name: str,
    kind: str,
    train: int,
    test: int = 0,
    lists: int = 0,
    *,
    layers: int | None = None,
    dtype: str | None = None,
) -> Setting:
    """``nano`` untrained, or a base; with ``lora`` an adapter of rank 16 on all projections.

    Args:
        name: of the base.
        kind: ``lora`` or ``full``.
        train, test, lists: how many prompts of each.
        layers: the last so many have branches; None: all.
        dtype: of a base that is loaded; None: what the package holds it in, float32 where all of it is
            trained and else as the device has it.
    """
    data, recipe = load("ml-100k"), load_recipe("demo")
    split, titles = split_of(data, recipe.split), data.titles["title"].to_pylist()
    if name == bases.NANO:
        tokenizer = nano_tokenizer(titles)
        model = nano_model(tokenizer)
    else:
        wanted = storage.type_named(dtype) or (storage.TUNED if kind == "full" else None)
        model, tokenizer = storage.load_base(bases.resolve(name), device=device(), dtype=wanted)
    model.requires_grad_(kind == "full")
    if kind == "lora":
        family = family_of(model)
        shape = LoraConfig(
            r=16,
            lora_alpha=32,
            target_modules=lora.targets(model, layers=layers),
            fan_in_fan_out=family.transposed,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, shape)
    encoder = Encoder(tokenizer, "likes", titles)

    def some(part: Any, n: int) -> Prompts:
        index = np.resize(np.arange(len(part)), n)
        return encoder.encode(queries(data, part.take(index)))

    asked = queries(data, split.test.take(np.repeat(np.arange(lists), 100)))
    items = np.random.default_rng(0).integers(0, len(titles), 100 * lists).astype(np.int32)
    return Setting(
        model.to(device()).eval(),
        encoder.answers,
        some(split.train, train),
        some(split.test, test),
        encoder.encode(Queries(asked.history, asked.rating, items, asked.label)),
    )
