"""Attribution patching here and in TransformerLens: same weights, same pairs, same process, same thread."""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import importlib
import json
import os
import platform
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from curerec.circuits.edges import edge_scores
from curerec.circuits.scorers import atp, atp_ig
from curerec.circuits.wiring import weight_of
from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.memory import keep_freed
from curerec.testing.memory import LivePeak

HERE = Path(__file__).parent
ANSWERS = (5, 9)
COLUMNS = ("model", "what", "batch", "ms_an_example", "times", "peak_mib", "of_lens", "passes", "off")


def made_model(
    name: str, vocabulary: int, layers: int, width: int, heads: int, dtype: torch.dtype = torch.float32
) -> Any:
    """A model of random weights; what is timed does not depend on them."""
    torch.manual_seed(0)
    if name == "gpt2":
        config: Any = GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, n_positions=256,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return GPT2LMHeadModel(config).to(dtype).eval()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=256,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def made_pairs(n: int, length: int, vocabulary: int) -> tuple[Prompts, Prompts]:
    """Random prompts of one length, and twins with a quarter of their tokens replaced."""
    rng = np.random.default_rng(0)
    ids = rng.integers(10, vocabulary, (n, length))
    other = np.where(rng.random(ids.shape) < 0.25, rng.integers(10, vocabulary, ids.shape), ids)
    offsets = np.arange(n + 1, dtype=np.int64) * length
    label = rng.integers(0, 2, n).astype(np.int8)
    spans = np.zeros((0, 5), np.int32)
    one, two = (Prompts(x.ravel().astype(np.int64), offsets, spans, label) for x in (ids, other))
    return one, two


def bridged(model: Any, vocabulary: int) -> Any:
    """The model under TransformerLens, per-head as its attribution patching needs it."""
    core = Tokenizer(models.WordLevel({f"w{k}": k for k in range(vocabulary)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w1", unk_token="w0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
        own = copy.deepcopy(model)
        own.set_attn_implementation("eager")  # its hooks on heads are of eager attention
        out = bridge.boot_transformers(
            "made/model", hf_model=own, tokenizer=tokenizer, device="cpu", dtype=model.dtype
        )
    return out.eval()


def lens(
    bridge: Any, clean: Prompts, corrupt: Prompts, *, layers: int, heads: int, every: bool
) -> np.ndarray:
    """Attribution patching with TransformerLens, [n, modules].

    ``every``: as its own demo has it (``get_cache_fwd_and_bwd``): all activations and gradients are cached,
    per head results are expanded. Otherwise as lean as its hooks allow: only ``hook_z`` and ``hook_mlp_out``.
    """
    ids = [torch.from_numpy(p.ids.reshape(len(p), -1)) for p in (clean, corrupt)]
    label = torch.from_numpy(clean.label.astype(np.int64))
    lean = [f"blocks.{k}.{n}" for k in range(layers) for n in ("attn.hook_z", "hook_mlp_out")]
    rows = torch.arange(len(label))

    def wanted(name: str) -> bool:
        return "_input" not in name if every else name in lean

    def run(tokens: torch.Tensor, backward: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        bridge.reset_hooks()
        acts: dict[str, Any] = {}
        grads: dict[str, Any] = {}

        def forward(x: Any, hook: Any) -> None:
            acts[hook.name] = x.detach() if torch.is_tensor(x) else x

        def back(x: Any, hook: Any) -> None:
            grads[hook.name] = x.detach() if torch.is_tensor(x) else x

        bridge.add_hook(wanted, forward, "fwd")
        if backward:
            bridge.add_hook(wanted, back, "bwd")
        with torch.set_grad_enabled(backward):
            logits = bridge(tokens, return_type="logits", prepend_bos=False)[rows, -1]
            m = (2 * label - 1) * (logits[:, ANSWERS[1]] - logits[:, ANSWERS[0]])
        if backward:
            m.sum().backward()
        bridge.reset_hooks()
        return acts, grads

    a, g = run(ids[0], True)
    b, _ = run(ids[1], False)

    def of(cache: dict[str, Any], layer: int, part: str) -> Any:
        for name in (f"blocks.{layer}.attn.hook_{part}", f"blocks.{layer}.hook_{part}", *ALIAS[part]):
            name = name.format(layer)
            if name in cache:
                return cache[name]
        raise KeyError(part)

    out = []
    for k in range(layers):
        if every:
            delta, grad = (of(b, k, "result") - of(a, k, "result")), of(g, k, "result")
            out.append((delta * grad).sum((1, 3)))
        else:
            delta, grad = (of(b, k, "z") - of(a, k, "z")), of(g, k, "z")
            delta, grad = (x if x.ndim == 4 else x.unflatten(-1, (heads, -1)) for x in (delta, grad))
            out.append((delta * grad).sum((1, 3)))
        out.append(((of(b, k, "mlp_out") - of(a, k, "mlp_out")) * of(g, k, "mlp_out")).sum((1, 2))[:, None])
    for p in bridge.parameters():
        p.grad = None
    return torch.cat(out, 1).float().numpy()


def lens_edges(bridge: Any, clean: Prompts, corrupt: Prompts, *, layers: int) -> np.ndarray:
    """All edges by first order with TransformerLens, [n, edges].

    Its hooks give what every head writes (``hook_result``) and each head's own copy of what its queries, keys
    and values read (``use_split_qkv_input``); only these are cached. Every layer's readers are met with all
    sources below in one product.
    """
    ids = [torch.from_numpy(p.ids.reshape(len(p), -1)) for p in (clean, corrupt)]
    label = torch.from_numpy(clean.label.astype(np.int64))
    rows = torch.arange(len(label))
    kinds = ("q_input", "k_input", "v_input", "mlp_in")
    writes = ["blocks.0.hook_resid_pre"]
    writes += [f"blocks.{k}.{n}" for k in range(layers) for n in ("attn.hook_result", "hook_mlp_out")]
    reads = [f"blocks.{k}.hook_{n}" for k in range(layers) for n in kinds]
    reads.append(f"blocks.{layers - 1}.hook_resid_post")

    def run(tokens: torch.Tensor, names: list[str], backward: bool) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def keeping(name: str) -> Any:  # a hook's own name is another one where this is an alias
            def keep(x: Any, hook: Any) -> Any:
                if not (backward and name in reads):
                    seen[name] = x.detach()
                    return None
                x = x.clone()  # its hook_mlp_in hands on the residual stream itself
                x.retain_grad()
                seen[name] = x
                return x

            return keep

        hooks = [(name, keeping(name)) for name in names]
        with torch.set_grad_enabled(backward):
            logits = bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks, prepend_bos=False)[
                rows, -1
            ]
            if backward:
                ((2 * label - 1) * (logits[:, ANSWERS[1]] - logits[:, ANSWERS[0]])).sum().backward()
        return seen

    a = run(ids[0], writes + reads, True)
    b = run(ids[1], writes, False)
    deltas = [b[w] - a[w].detach() for w in writes]
    deltas = [d if d.ndim == 4 else d[:, :, None] for d in deltas]
    out = []
    for k in range(layers + 1):
        below = torch.cat(deltas[: 1 + 2 * k], 2)
        if k < layers:
            readers = torch.cat([a[f"blocks.{k}.hook_{n}"].grad for n in kinds[:3]], 2)
            out.append(torch.einsum("btsd,btrd->bsr", below, readers).flatten(1))
            below, readers = torch.cat(deltas[: 2 + 2 * k], 2), a[f"blocks.{k}.hook_mlp_in"].grad[:, :, None]
        else:
            readers = a[reads[-1]].grad[:, :, None]
        out.append(torch.einsum("btsd,btrd->bsr", below, readers).flatten(1))
    for p in bridge.parameters():
        p.grad = None
    return torch.cat(out, 1).float().numpy()


def products(model: Any, batch: int, length: int, *, edges: bool = False) -> np.ndarray:
    """The matrix products that two forward passes and a backward one cannot do without, and nothing else.

    Of the last layer those of keys and values alone: the rest is needed at one position. No attention, norm,
    activation function, vocabulary, or score.

    Args:
        model: whose shapes they have.
        batch, length: of the prompts.
        edges: also what every head writes and every reader pulls, each formed once, and one product of the
            two a layer of readers.
    """
    family = family_of(model)
    *whole, last = family.layer_list(model)
    paths = {p.path: p.parts for p in family.projections.values()}
    maps = [layer.get_submodule(path) for layer in whole for path in paths]
    maps += [
        last.get_submodule(path) for path, parts in paths.items() if "k_proj" in parts or "v_proj" in parts
    ]
    weights = [weight_of(m) for m in maps]  # [out, in]
    states = {w: torch.ones(batch * length, w) for weight in weights for w in weight.shape}
    for weight in weights:
        for _ in range(2):
            torch.mm(states[weight.shape[1]], weight.T)
        torch.mm(states[weight.shape[0]], weight)
    if edges:
        edge_products(model, batch, length)
    return np.zeros((batch, 1))


def edge_products(model: Any, batch: int, length: int) -> None:
    """What edges take beyond the passes: see :func:`products`."""
    family = family_of(model)
    heads, groups, width = family.heads(model)
    n_layers, d = len(family.layer_list(model)), heads * width
    small, weight = torch.ones(1, batch * length, width), torch.ones(1, width, d)
    wrote = torch.ones(1 + n_layers * (heads + 1), batch, length, d)
    pulled = torch.ones(heads + 2 * groups + 1, batch, length, d)
    for k in range(n_layers - 1):
        first = 1 + k * (heads + 1)
        out = wrote[first : first + heads].flatten(1, 2)
        torch.bmm(small.expand(heads, -1, -1), weight.expand(heads, -1, -1), out=out)
    for k in range(n_layers):
        n = heads + 2 * groups if k < n_layers - 1 else 2 * groups  # of the last layer keys and values
        out = pulled[:n].flatten(1, 2)
        torch.bmm(small.expand(n, -1, -1), weight.expand(n, -1, -1), out=out)
        readers = pulled[: n + (k < n_layers - 1)].flatten(2).permute(1, 2, 0)
        torch.bmm(wrote[: 1 + k * (heads + 1)].flatten(2).transpose(0, 1), readers)


#: Names of the same places under the bridge.
ALIAS = {
    "z": ("blocks.{}.attn.o.hook_in",),
    "result": ("blocks.{}.attn.hook_result",),
    "mlp_out": ("blocks.{}.mlp.hook_out",),
}


def measured(call: Any, repeats: int) -> tuple[float, int, Any]:
    """Median CPU seconds (of one thread), peak bytes of live tensors, and the result."""
    out = call()
    times = []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    gc.collect()
    with LivePeak() as memory:
        call()
    return statistics.median(times), memory.peak, out


#: What a row is compared with where that is not the first.
RIVAL = dict.fromkeys(("edges", "lens edges", "edge products alone"), "lens edges")


def ways_to_score(model: Any, bridge: Any, lean: Any, split: Any, batch: int, options: Any) -> dict[str, Any]:
    """What is compared, by name; the first is the yardstick, of edges :data:`RIVAL`."""
    pair = made_pairs(batch, options.length, options.vocabulary)
    about = {"layers": options.layers, "heads": options.heads}
    return {
        "lens demo": lambda: lens(bridge, *pair, **about, every=True),
        "lens demo, one by one": lambda: np.concatenate(
            [lens(bridge, *(p.take(np.array([k])) for p in pair), **about, every=True) for k in range(batch)]
        ),
        "lens lean": lambda: lens(lean, *pair, **about, every=False),
        "products alone": lambda: products(model, batch, options.length),
        "atp": lambda: atp.score(model, *pair, ANSWERS, batch_size=batch),
        "atp_ig": lambda: atp_ig.score(model, *pair, ANSWERS, batch_size=batch),
        "lens edges": lambda: lens_edges(split, *pair, layers=options.layers),
        "edge products alone": lambda: products(model, batch, options.length, edges=True),
        "edges": lambda: edge_scores(model, *pair, ANSWERS, batch_size=batch),
    }


def off(what: str, values: np.ndarray, truth: np.ndarray) -> float | None:
    """Largest difference over the largest score; None of what scores otherwise."""
    if what in ("atp_ig", "products alone", "edge products alone"):
        return None
    if what in RIVAL:  # the two have edges in different orders
        values, truth = np.sort(values, 1), np.sort(truth, 1)
    return float(np.abs(values - truth).max() / np.abs(truth).max())


def main() -> None:
    """Measure, append, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["gpt2", "llama"])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--ways", nargs="+", help="only these rows; default: all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    keep_freed()  # for all alike
    table = []
    for name in options.models:
        dtype = getattr(torch, options.dtype)
        model = made_model(name, options.vocabulary, options.layers, options.width, options.heads, dtype)
        bridge = bridged(model, options.vocabulary)
        bridge.set_use_attn_result(True)
        lean, split = (bridged(model, options.vocabulary) for _ in range(2))
        split.set_use_attn_result(True)
        split.set_use_split_qkv_input(True)
        split.set_use_hook_mlp_in(True)
        for batch in options.batch:
            ways = ways_to_score(model, bridge, lean, split, batch, options)
            ways = {k: v for k, v in ways.items() if not options.ways or k in options.ways}
            bases: dict[str, tuple[float, int, np.ndarray]] = {}
            for what, call in ways.items():
                time_s, peak, found = measured(call, options.repeats)
                values = getattr(found, "values", found)
                bases[what] = time_s, peak, values
                base = bases.get(RIVAL.get(what, next(iter(ways))), bases[what])
                row = {
                    "model": name,
                    "what": what,
                    "batch": batch,
                    "dtype": options.dtype,
                    "ms_an_example": 1000 * time_s / batch,
                    "times": base[0] / time_s,
                    "peak_mib": peak / 2**20,
                    "of_lens": peak / base[1],
                    "passes": found.cost.forward_equivalents if hasattr(found, "cost") else None,
                    "off": off(what, values, base[2]),
                    "shape": {
                        k: getattr(options, k) for k in ("layers", "width", "heads", "vocabulary", "length")
                    },
                    "repeats": options.repeats,
                    "note": options.note,
                    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "versions": {
                        p: version(p) for p in ("torch", "transformers", "transformer-lens", "numpy")
                    },
                    "machine": {
                        "processor": processor(),
                        "cores": os.cpu_count(),
                        "threads": torch.get_num_threads(),
                        "load": os.getloadavg()[0],
                        "system": platform.platform(),
                    },
                }
                table.append(row)
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in table:
        cells = [f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS]
        print("| " + " | ".join(cells) + " |")


def processor() -> str:
    """Name of the processor, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
