"""One tiny random model of every type that a family covers, with what the family is known for switched on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from curerec.prompts.encoding import Prompts
from curerec.recommender import score as score_module
from curerec.recommender.families import FAMILIES, family_of
from made_models import shaken

WIDTH, LAYERS, HEADS, KV = 16, 2, 4, 2
_COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GROUPED = {**_COMMON, "num_key_value_heads": KV, "intermediate_size": 24}
_GEMMA = {**_GROUPED, "head_dim": 6, "query_pre_attn_scalar": 6, "sliding_window": 24}
_DRY = {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
#: Model type -> (prefix of its classes, options). Head widths other than d / H where the family has them,
#: caps low and windows short enough to matter on prompts of twenty to sixty tokens.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**_GROUPED, "head_dim": 6, "sliding_window": 24}),
    "qwen2": ("Qwen2", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 8}),
    "gpt2": ("GPT2", {**_COMMON, **_DRY, "attn_pdrop": 0.0, "n_inner": 24}),
    "gemma2": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}),
    "gemma3_text": ("Gemma3", {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("Phi", {**_GROUPED, **_DRY, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    "phi3": ("Phi3", {**_GROUPED, **_DRY}),
    # SmolLM2-135M's shape: nine heads over three groups, no power of two, embeddings tied.
    "smollm2": (
        "Llama",
        {
            **_GROUPED,
            "hidden_size": 36,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
}
#: What Transformers calls a type that goes by another name here.
MODEL_TYPES = {"smollm2": "llama"}
TYPES = tuple(OPTIONS)
#: Types whose layers hold what others' hold: their slowest tests are left to the soak.
ALIKE = ("mistral", "qwen2", "qwen3", "gemma3_text", "smollm2")


def made_family_model(
    model_type: str, vocabulary: int, *, attention: str | None = None, scale: float = 0.15, **more: Any
) -> Any:
    """A random model in float32 and eval mode, weights large enough for logits to move."""
    prefix, options = OPTIONS[model_type]
    known = MODEL_TYPES.get(model_type, model_type)
    config = transformers.AutoConfig.for_model(known, vocab_size=vocabulary, **{**options, **more})
    assert type(config).__name__.startswith(prefix)
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention or family_of_type(model_type).attention or "sdpa"
    )
    return shaken(model.eval(), scale)


def family_of_type(model_type: str) -> Any:
    """The family of a model type."""
    return next(f for f in FAMILIES if MODEL_TYPES.get(model_type, model_type) in f.model_types)


def lora_on(
    model: Any, targets: tuple[str, ...] | None = None, *, layers: tuple[int, ...] | None = None, r: int = 3
) -> Any:
    """The model with an adapter on some (None: all) projections and layers, both factors random."""
    family = family_of(model)
    config = LoraConfig(
        r=r,
        lora_alpha=2 * r,
        target_modules=[family.projections[t].path for t in targets or family.projections],
        layers_to_transform=layers if layers is None else list(layers),
        fan_in_fan_out=family.transposed,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(3)
    return get_peft_model(model, config).eval()


def subsets(model_type: str) -> list[tuple[str, ...]]:
    """Some subsets of a family's projections: queries or what holds them, outputs, the MLP's."""
    known = family_of_type(model_type).projections
    by_part = [name for name, p in known.items() if {"q_proj", "v_proj"} & set(p.parts)]
    out = [name for name, p in known.items() if {"o_proj", "down_proj"} & set(p.parts)]
    return [tuple(by_part), tuple(out), tuple(n for n, p in known.items() if p.block == "mlp")]


#: Kinds of models by name, see :func:`model_of_kind`: with an adapter on all projections, on some of them,
#: of four layers with six heads over two groups, so that some layers are neither first nor last, and with
#: one key and value head for all.
WITH_LORA = tuple(f"{t}+lora" for t in TYPES)
PARTLY = tuple(f"{t}+lora{k}" for t in ("llama", "gpt2") for k in range(3))
DEEP = ("llama+deep", "gemma2+deep")
MULTI_QUERY = ("llama+mqa",)


def model_of_kind(kind: str, vocabulary: int, **more: Any) -> Any:
    """A model of ``TYPE``, ``TYPE+lora``, ``TYPE+loraN`` (N-th of :func:`subsets`), ``+deep`` or ``+mqa``."""
    model_type, _, extra = kind.partition("+")
    if extra == "deep":
        more |= {"num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
        more |= {"hidden_size": 24}
    if extra == "mqa":
        more |= {"num_key_value_heads": 1}
    model = made_family_model(model_type, vocabulary, **more)
    if not extra.startswith("lora"):
        return model
    which = extra.removeprefix("lora")
    return lora_on(model, subsets(model_type)[int(which)] if which else None)


@contextmanager
def in_double(model: Any) -> Iterator[Any]:
    """The model in float64 throughout: RMS norms and eager softmax, which cast to float32, included."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        eps = getattr(self, "variance_epsilon", None) or self.eps
        weight = 1.0 + self.weight if "Gemma" in type(self).__name__ else self.weight
        return weight * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()

    def softmax(x: torch.Tensor, dim: int = -1, dtype: Any = None) -> torch.Tensor:
        return torch.softmax(x, dim)

    kinds = {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}
    patches = [mock.patch.object(kind, "forward", norm) for kind in kinds]
    patches.append(mock.patch.object(torch.nn.functional, "softmax", softmax))
    model.double()
    for patch in patches:
        patch.start()
    try:
        yield model
    finally:
        for patch in patches:
            patch.stop()


def left_padded(prompts: Prompts, index: np.ndarray, pad: int = 0) -> tuple[torch.Tensor, ...]:
    """Ids [batch, pos], answer positions [batch] and mask [batch, pos] with the padding on the left."""
    ids, last = prompts.padded(index, pad)
    width = ids.shape[1]
    shift = width - 1 - last
    column = np.arange(width)[None] - shift[:, None]
    moved = np.where(column >= 0, np.take_along_axis(ids, np.maximum(column, 0), 1), pad)
    return torch.from_numpy(moved), torch.full((len(index),), width - 1), torch.from_numpy(column >= 0)


@contextmanager
def padded_on_the_left(pad: int = 5) -> Iterator[None]:
    """Every batch of the package padded on the left inside, whatever module asks for it."""
    masks: list[torch.Tensor] = []
    read = score_module.answer_logits

    def to_batch(prompts: Prompts, index: np.ndarray, device: torch.device) -> tuple[torch.Tensor, ...]:
        ids, last, mask = left_padded(prompts, index, pad)
        masks[:] = [mask.to(device)]
        return ids.to(device), last.to(device)

    def answer_logits(model: Any, ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        assert masks[0].shape == ids.shape
        return read(model, ids, *rest, **named, mask=masks[0])

    with pytest.MonkeyPatch.context() as patch:
        for name, new in (("to_batch", to_batch), ("answer_logits", answer_logits)):
            old = getattr(score_module, name)
            for module in [m for n, m in sys.modules.items() if n.startswith("curerec.")]:
                if getattr(module, name, None) is old:
                    patch.setattr(module, name, new)
        yield
