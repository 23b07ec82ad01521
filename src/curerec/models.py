"""The models of a recipe: its base, what fine-tuning starts from, and what can be refused of either."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftLora
from peft import get_peft_model

from curerec.errors import ConfigError, ModelError
from curerec.interactions import Interactions
from curerec.progress import Clock
from curerec.prompts.encoding import Encoder, Prompts, queries
from curerec.prompts.templates import TEMPLATES
from curerec.recipe import ModelConfig, Recipe
from curerec.recommender import bases, lora, parallel, storage
from curerec.recommender.families import family_of
from curerec.recommender.fitting import positions_of
from curerec.recommender.score import score
from curerec.recommender.spread import spread_base
from curerec.recommender.tune import tune
from curerec.records import Examples, Recommender
from curerec.splitting import public_split


def device() -> torch.device:
    """A CUDA device where there is one, else the CPU; of several processes each has its own."""
    return parallel.place()


def base_folder(
    data: Interactions,
    recipe: Recipe,
    *,
    cache: Path | None = None,
    clock: Clock | None = None,
) -> Path:
    """The folder of the recipe's base model; nano is pre-trained on the public part of the users first.

    Raises:
        ModelError: nano without a public part.
    """
    name = recipe.model.base
    if name != bases.NANO:
        return bases.resolve(name, cache=cache)
    if not recipe.split.public_share:
        raise ModelError(
            "needs users to be pre-trained on",
            where="base model nano",
            mend="Set split.public_share, e.g. 0.4",
        )
    part = public_split(data, recipe.split)
    about = {
        "data": data.fingerprint,
        "titles": data.titles_digest,
        "split": recipe.split.model_dump(mode="json", include={"seed", "public_share", "history"}),
        "pretrain": recipe.model.pretrain.model_dump(mode="json"),
        "template": recipe.model.template,
    }

    def pretrain(model: Any, tokenizer: Any, progress: Any) -> None:
        encoder = Encoder(tokenizer, recipe.model.template, data.titles["title"].to_pylist())
        prompts = encoder.encode(queries(data, part.train))
        model.to(device())
        tune(
            model,
            prompts,
            encoder.answers,
            recipe.model.pretrain,
            seed=recipe.split.seed,
            progress=progress,
            runtime=recipe.runtime,
        )
        model.to("cpu")

    with (clock or Clock()).stage("pre-train the base model") as advance:
        return bases.make_nano(
            data.titles["title"].to_pylist(),
            about,
            pretrain,
            seed=recipe.split.seed,
            shape=recipe.model.nano.model_dump() if recipe.model.nano else None,
            cache=cache,
            progress=advance,
        )


def spreads(config: ModelConfig) -> bool:
    """Whether processes that were started together each hold a part of the base: with FSDP and an adapter.

    Full fine-tuning is cut for its steps alone (:class:`curerec.recommender.parallel.Team`).

    Args:
        config: of the model.

    Raises:
        ConfigError: they would, and the base is in few bits.
    """
    if config.kind == "full" or not parallel.with_fsdp():
        return False
    if config.base_bits != 16:
        raise ConfigError(
            "a base in few bits cannot be shared out over processes",
            where="--use_fsdp",
            mend="Start training without --use_fsdp, or set model.base_bits: 16",
        )
    return True


def fresh_model(folder: Path, config: ModelConfig, *, seed: int) -> Any:
    """The base as fine-tuning starts from it: all parameters trainable, or a new adapter.

    With FSDP and an adapter each process puts a part of the base on its device
    (:mod:`curerec.recommender.spread`), and all must come here.

    Args:
        folder: of the base.
        config: kind and adapter shape.
        seed: of the adapter's initial weights.

    Raises:
        ConfigError: a base in few bits is to be shared out.
        ModelError: the base cannot be used, or has not what the adapter is to go on.
    """
    if config.kind == "full":
        model, _ = storage.load_base(folder, device=device(), dtype=storage.TUNED)
        model.requires_grad_(True)
        return model
    cut = spreads(config)
    model = storage.load_frozen(
        folder,
        config.base_bits,
        device="cpu" if cut else device(),  # whole in main memory only
        dtype=storage.type_named(config.dtype) or storage.type_on(device()),
    )
    family = family_of(model)
    known = family.projections
    unknown = set(config.lora.targets or []) - set(known)
    if unknown:
        raise ModelError(
            f"has no projection {', '.join(sorted(unknown))}",
            where="model.lora.targets",
            mend=f"Choose from {', '.join(known)}",
        )
    n_layers = len(family.layer_list(model))
    if config.lora.layers is not None and config.lora.layers > n_layers:
        raise ModelError(
            f"has {n_layers} layers, not {config.lora.layers}",
            where="model.lora.layers",
            mend=f"Give {n_layers} at the most, or none for all",
        )
    shape = PeftLora(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=lora.targets(model, config.lora.targets, config.lora.layers),
        fan_in_fan_out=family.transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(model, shape).eval()
    if cut:
        spread_base(model, device())
    return model


def check_template(name: str) -> None:
    """Refuse a template that is none.

    Raises:
        ConfigError: naming those there are.
    """
    if name not in TEMPLATES:
        mend = f"Choose from {', '.join(TEMPLATES)}"
        raise ConfigError("is no template", where="model.template", mend=mend)


def check_finite(model: Any) -> None:
    """Refuse weights that training drove out of the numbers.

    Raises:
        ModelError: a trained weight is infinite or not a number; of several processes all say so.
    """
    # Of a frozen product a process may hold a part, which says nothing of the others' parts.
    if not all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad):
        raise ModelError(
            "training diverged: its weights are no finite numbers any more",
            where="fine-tuning",
            mend="Lower the learning rate (lr) in the recipe",
        )


def check_fits(model: Any, asked: Iterable[Prompts]) -> None:
    """Refuse prompts longer than the model's positions (:func:`curerec.recommender.fitting.positions_of`).

    Args:
        model: plain or PEFT-wrapped.
        asked: all prompts that it will be asked or trained on, each set [n].

    Raises:
        ModelError: naming both lengths.
    """
    room = positions_of(model)
    if room is None:
        return
    longest = max(int(prompts.lengths.max(initial=0)) for prompts in asked)
    if longest > room:
        raise ModelError(
            f"has {room} positions, the longest prompt {longest} tokens",
            where="base model",
            mend="Use a model with more positions, a shorter split.history or shorter titles",
        )


def check_asked(recommender: Recommender, data: Interactions, parts: Iterable[Examples]) -> None:
    """:func:`check_fits` for examples that a recommender is to be asked or trained on.

    Raises:
        ModelError: naming both lengths.
    """
    encoder = Encoder(recommender.tokenizer, recommender.template, data.titles["title"].to_pylist())
    check_fits(recommender.model, (encoder.encode(queries(data, part)) for part in parts))


def logits_of(
    recommender: Recommender, data: Interactions, examples: Examples, model: Any = None
) -> np.ndarray:
    """Answer logits of examples, float32 [n, 2]."""
    encoder = Encoder(recommender.tokenizer, recommender.template, data.titles["title"].to_pylist())
    return score(model or recommender.model, encoder.encode(queries(data, examples)), recommender.answers)
