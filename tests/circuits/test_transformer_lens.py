"""Parity with TransformerLens: the same nodes and edges from its hooks on copies of the same weights.

Skipped where transformer-lens is not installed (extra ``parity``): it is no dependency of this package.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings

import pytest
import torch

from curerec.circuits.edges import edge_scores
from curerec.circuits.scorers import atp, atp_ig
from curerec.circuits.wiring import wiring_of
from made_families import LAYERS, made_family_model
from made_models import made_prompts, other_titles

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_lens") is None, reason="transformer-lens is not installed"
    ),
    pytest.mark.filterwarnings("ignore"),
]
CLEAN, ENCODER = made_prompts(3)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)


def bridged(model):
    """The model under TransformerLens, with a residual copy for every reader and every head's write apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = importlib.import_module("transformer_lens.model_bridge").TransformerBridge
        # Its per-head reading is of eager attention.
        model = copy.deepcopy(model)
        model.set_attn_implementation("eager")
        out = bridge.boot_transformers(
            "made/model",
            hf_model=model,
            tokenizer=copy.deepcopy(ENCODER.tokenizer),
            device="cpu",
            dtype=torch.float32,
        )
    out.set_use_attn_result(True)
    out.set_use_split_qkv_input(True)
    out.set_use_hook_mlp_in(True)
    return out.eval()


def watched(bridge, ids, label, *, layers, embedding=None):
    """Activations (with gradients of the margin) at the hooks that nodes write at and edges read at.

    ``embedding`` takes the place of what the first layer reads, where it is given.
    """
    names = ["blocks.0.hook_resid_pre", f"blocks.{layers - 1}.hook_resid_post"]
    for k in range(layers):
        names += [f"blocks.{k}.hook_{n}" for n in ("q_input", "k_input", "v_input", "mlp_in", "mlp_out")]
        names += [f"blocks.{k}.attn.hook_result", f"blocks.{k}.attn.hook_z"]
    seen = {}

    def keeping(name):  # a hook's own name is another one where this is an alias
        def keep(x, hook):
            # A copy: its hook_mlp_in hands on the residual stream itself, with the gradient of all readers.
            x = x.clone()
            if embedding is not None and name == "blocks.0.hook_resid_pre":
                x = embedding.clone().requires_grad_()
            if x.requires_grad:
                x.retain_grad()
            seen[name] = x
            return x

        return keep

    logits = bridge.run_with_hooks(
        ids, return_type="logits", fwd_hooks=[(name, keeping(name)) for name in names], prepend_bos=False
    )[0, -1]
    m = (2 * label - 1) * (logits[ANSWERS[1]] - logits[ANSWERS[0]])
    m.backward()
    missing = set(names) - set(seen)
    assert not missing, missing
    return seen, float(m.detach())


def slopes(bridge, ids, label, clean, corrupt, *, layers, steps):
    """Gradients at the clean prompt, or their mean over midpoints from the corrupt to the clean embedding."""
    if not steps:
        return {name: x.grad for name, x in clean.items()}
    ends = [x["blocks.0.hook_resid_pre"].detach() for x in (corrupt, clean)]
    total = {}
    for k in range(steps):
        between = torch.lerp(*ends, (k + 0.5) / steps)
        found, _ = watched(bridge, ids, label, layers=layers, embedding=between)
        for name, x in found.items():
            total[name] = total.get(name, 0) + x.grad / steps
    return total


def by_head(x, n_heads):
    return x if x.ndim == 4 else x.unflatten(-1, (n_heads, -1))


CASES = [
    *(pytest.param(t, LAYERS, 0, id=t) for t in ("gpt2", "llama", "qwen2")),
    pytest.param("llama", 3, 0, id="three layers"),
    pytest.param("smollm2", LAYERS, 0, id="nine heads over three groups"),
    pytest.param("llama", LAYERS, 3, id="atp_ig"),
    pytest.param("gpt2", 3, 2, id="atp_ig, three layers, fused"),
]


@pytest.mark.parametrize(("model_type", "layers", "steps"), CASES)
def test_nodes_and_edges(model_type, layers, steps):
    """``steps`` points between the embeddings of ``atp_ig``; 0: ``atp``, the gradient at the clean prompt."""
    model = made_family_model(model_type, WORDS, num_hidden_layers=layers)
    wiring = wiring_of(model)
    pairs = (model, CLEAN, CORRUPT, ANSWERS)
    if steps:
        nodes = atp_ig.score(*pairs, steps=steps)
        edges = edge_scores(*pairs, scorer="atp_ig", steps=steps)
    else:
        nodes, edges = atp.score(*pairs), edge_scores(*pairs)
    bridge = bridged(model)
    assert len(wiring.layers) == layers
    column = {name: k for k, name in enumerate(edges.names)}
    compared = set()
    for n in range(len(CLEAN)):
        ids = [
            torch.from_numpy(p.ids[p.offsets[n] : p.offsets[n + 1]])[None].clone() for p in (CLEAN, CORRUPT)
        ]
        label = int(CLEAN.label[n])
        clean, m = watched(bridge, ids[0], label, layers=layers)
        corrupt, _ = watched(bridge, ids[1], label, layers=layers)
        scale = max(1.0, abs(m))

        def near(got, want, scale=scale):
            assert float(got) == pytest.approx(float(want), abs=1e-5 * scale)

        gap = {k: (corrupt[k] - clean[k]).detach() for k in clean}
        grads = slopes(bridge, ids[0], label, clean, corrupt, layers=layers, steps=steps)
        writes = {"input": gap["blocks.0.hook_resid_pre"]}
        for k in range(layers):
            z = f"blocks.{k}.attn.hook_z"
            per_head = (by_head(gap[z], wiring.n_heads) * by_head(grads[z], wiring.n_heads)).sum((0, 1, 3))
            for h in range(wiring.n_heads):
                name = f"layers.{k}.head.{h}"
                near(nodes.values[n, nodes.names.index(name)], per_head[h])
                writes[name] = gap[f"blocks.{k}.attn.hook_result"][:, :, h]
            out = f"blocks.{k}.hook_mlp_out"
            name = f"layers.{k}.mlp"
            near(nodes.values[n, nodes.names.index(name)], (gap[out] * grads[out]).sum())
            writes[name] = gap[out]
        reads = {"logits": grads[f"blocks.{layers - 1}.hook_resid_post"]}
        for k in range(layers):
            reads[f"layers.{k}.mlp"] = grads[f"blocks.{k}.hook_mlp_in"]
            for kind in "qkv":
                grad = grads[f"blocks.{k}.hook_{kind}_input"]
                heads = wiring.n_heads if kind == "q" else wiring.n_kv
                # Where heads share keys and values it may give each its own copy: a group is their sum.
                grad = grad.unflatten(2, (heads, -1)).sum(3)
                for h in range(heads):
                    place = f"head.{h}.q" if kind == "q" else f"kv.{h}.{kind}"
                    reads[f"layers.{k}.{place}"] = grad[:, :, h]
        for source, delta in writes.items():
            for reader, grad in reads.items():
                name = f"{source}->{reader}"
                if name in column:
                    near(edges.values[n, column[name]], (delta * grad).sum())
                    compared.add(name)
    assert compared == set(column)
