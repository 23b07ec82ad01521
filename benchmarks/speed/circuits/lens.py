"""Attribution patching with TransformerLens: as its demo has it, as lean as hooks allow, and all edges."""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from curerec.prompts.encoding import Prompts

ANSWERS = (5, 9)  # token ids of (no, yes)

#: Names of the same places under the bridge.
ALIAS = {
    "z": ("blocks.{}.attn.o.hook_in",),
    "result": ("blocks.{}.attn.hook_result",),
    "mlp_out": ("blocks.{}.mlp.hook_out",),
}


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


def lens_nodes(
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
