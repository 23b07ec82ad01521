"""Question 2: the share of a device's matrix rate that training reaches, at the shapes of known models.

Counted is what must be done: 4 x parameters x tokens for the products of the frozen weights in the forward
pass and for the gradients of their inputs, the adapters' products (6 x parameters x tokens) and attention.
Of the last layer the answer needs keys and values everywhere, all else at one position: no more is counted.
The rate is that of a large product of bfloat16 (float32 on a CPU) in the same run. Weights are random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from common import alternating, done, options, write
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from curerec.models import device
from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.runtime import RuntimeConfig
from curerec.recommender.tune import TuneConfig, tune

LLAMA = {"model_type": "llama", "num_key_value_heads": None}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **LLAMA,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "llama-2-7b": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}


def rate(dtype: torch.dtype, size: int) -> float:
    """Operations a second of a large product."""
    a = torch.randn(size, size, dtype=dtype, device=device())
    seconds = alternating({"product": lambda: [a @ a for _ in range(10)]}, 5)["product"]["low"]
    return 10 * 2 * size**3 / seconds


def needed_weights(layers: list[Any], tokens: int, *, adapters: bool) -> float:
    """Weights times the share of positions that their product is needed at: 1 but in the last layer.

    Args:
        layers: of the decoder, with adapters on them.
        tokens: positions of a prompt.
        adapters: count the adapters' weights; else the frozen matrices.
    """
    found = 0.0
    for k, layer in enumerate(layers):
        for name, p in layer.named_parameters():
            if p.dim() != 2 or (".lora_" in name) != adapters:
                continue
            everywhere = 1.0 if "k_proj" in name or "v_proj" in name else 2 / 3 if "c_attn" in name else 0.0
            found += p.numel() * (everywhere + (1 - everywhere) / tokens if k == len(layers) - 1 else 1.0)
    return found


def main() -> None:
    """One row a shape, compiled and not."""
    parser = options(__doc__ or "")
    parser.add_argument("--shapes", nargs="*", default=["smollm2-135m", "gpt2-large", "llama-2-7b"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    size = 8192 if device().type == "cuda" else 1024
    for name in ["tiny"] if args.tiny else args.shapes:
        for compiled in (False,) if args.tiny else (False, True):
            batch, steps = (4, 2) if args.tiny else (args.batch, args.steps)
            key = {"question": "matrix", "shape": name, "compiled": compiled, "batch": batch}
            key["tokens"] = args.tokens
            if done(args.results, key):
                continue
            given = {k: v for k, v in SHAPES[name].items() if v is not None}
            config = AutoConfig.for_model(**given, vocab_size=50_000 if name != "tiny" else 500)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device())
            family = family_of(model)
            paths = [p.path for p in family.projections.values()]
            shape = LoraConfig(r=16, target_modules=paths, fan_in_fan_out=family.transposed)
            model = get_peft_model(model, shape)
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            layers = list(family.layer_list(model))
            frozen, adapters = (needed_weights(layers, args.tokens, adapters=a) for a in (False, True))
            n, rng = steps * batch, np.random.default_rng(0)
            prompts = Prompts(
                rng.integers(3, 400, n * args.tokens),
                np.arange(n + 1) * args.tokens,
                np.zeros((0, 5), np.int32),
                rng.integers(0, 2, n).astype(np.int8),
            )
            tuning = TuneConfig(epochs=1, batch_size=batch, lr=1e-4)
            use = RuntimeConfig(compile=compiled)

            def train(
                model: Any = model, prompts: Any = prompts, tuning: Any = tuning, use: Any = use
            ) -> None:
                tune(model, prompts, (1, 2), tuning, seed=0, runtime=use)

            seconds = alternating({"train": train}, 1 if args.tiny else args.repeats)["train"]
            total, width = n * args.tokens, config.hidden_size
            deep = config.num_hidden_layers - 1 + 1 / args.tokens  # in the last layer one position asks
            attention = 3 * 2 * total * args.tokens * width * deep  # causal: half of both
            needed = 4 * frozen * total + 6 * adapters * total + attention
            best = rate(dtype, size)
            values = {"seconds": seconds, "tokens_per_s": total / seconds["median"], "matrix_rate": best}
            values["share"] = needed / seconds["median"] / best
            write(args.results, key, values, args.note)
            del model


if __name__ == "__main__":
    main()
