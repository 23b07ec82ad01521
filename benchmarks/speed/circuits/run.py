"""Attribution patching here and in TransformerLens: same weights, same pairs, same process, same thread."""

from __future__ import annotations

import argparse
import datetime
import gc
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
from lens import ANSWERS, bridged, lens_edges, lens_nodes
from products import products
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from curerec.circuits.edges import edge_scores
from curerec.circuits.scorers import atp, atp_ig
from curerec.machine import processor_name
from curerec.prompts.encoding import Prompts
from curerec.recommender.alive import LivePeak
from curerec.recommender.memory import keep_freed

HERE = Path(__file__).parent
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
        "lens demo": lambda: lens_nodes(bridge, *pair, **about, every=True),
        "lens demo, one by one": lambda: np.concatenate(
            [
                lens_nodes(bridge, *(p.take(np.array([k])) for p in pair), **about, every=True)
                for k in range(batch)
            ]
        ),
        "lens lean": lambda: lens_nodes(lean, *pair, **about, every=False),
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
                        "processor": processor_name(),
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


if __name__ == "__main__":
    main()
