"""The contents of a circuit.json, made up: a small model, every field filled."""

from __future__ import annotations

from typing import Any

import numpy as np


def made_circuit(*, layers: int = 2, heads: int = 4, seed: int = 0) -> dict[str, Any]:
    """As ``CircuitFile.model_dump(mode="json")`` gives it."""
    rng = np.random.default_rng(seed)
    names = [
        n for k in range(layers) for n in (*(f"layers.{k}.head.{h}" for h in range(heads)), f"layers.{k}.mlp")
    ]
    total, size = len(names), max(1, len(names) // 2)
    order = rng.permutation(total).tolist()
    scores = rng.normal(-0.3, 0.4, total).round(4).tolist()
    nodes = []
    for k, name in enumerate(names):
        reads = None
        if ".head." in name:
            reads = {
                "part": ["candidate", "liked", None][k % 3], "mass": 0.4, "low": 0.35, "high": 0.46,
                "tokens": 0.1, "prompts": 0.9,
                "by_part": {"liked": 0.4, "disliked": 0.3, "candidate": 0.2, "frame": 0.1},
            }  # fmt: skip
        nodes.append(
            {
                "name": name, "score": scores[k], "low": scores[k] - 0.1, "high": scores[k] + 0.1,
                "exact": scores[k] + 0.02, "in_graph": order.index(k) < size, "rank": order.index(k),
                "dropped": 0.2 if order.index(k) < size else None,
                "groups": {"forget": k % 3, "shared": 2, "retain": (k + 1) % 4, "frozen": 1}, "reads": reads,
            }
        )  # fmt: skip
    sources, edges = ["input"], []
    for k in range(layers):
        readers = [f"layers.{k}.head.{h}.q" for h in range(heads)]
        readers += [f"layers.{k}.kv.{g}.{p}" for p in "kv" for g in range(heads)]
        edges += [(s, r) for s in sources for r in readers]
        sources += [f"layers.{k}.head.{h}" for h in range(heads)]
        edges += [(s, f"layers.{k}.mlp") for s in sources]
        sources.append(f"layers.{k}.mlp")
    edges += [(s, "logits") for s in sources]
    drawn = rng.normal(-0.05, 0.1, len(edges))
    matters = {
        "auc": 0.73, "auc_floor": 0.5, "auc_kept": 0.72, "auc_without": 0.51, "auc_random": 0.69,
        "auc_random_low": 0.64, "auc_random_high": 0.72, "auc_random_kept": 0.55, "margin_kept": 0.93,
        "margin_random_kept": 0.2, "prompts": 400.0, "draws": 10.0, "lost": 0.96, "lost_random": 0.17,
    }  # fmt: skip
    measured = {
        "faithfulness": 0.93, "completeness": 0.97, "jaccard": 0.88, "jaccard_chance": 0.35,
        "cpr": 0.61, "cmd": 0.39,
        "curve": [[n, min(1.0, 1.8 * n / total)] for n in range(total + 1)], "minimality": [0.2, None],
    }  # fmt: skip
    return {
        "format": "curerec-circuit",
        "version": 5,
        "about": {"data": "ml-100k", "base": "nano", "seed": 0, "faithfulness_asked": 0.9},
        "corruption": "prompt",
        "shape": {
            "n_layers": layers, "n_heads": heads, "n_kv_heads": heads, "d_model": 64,
            "parallel_attn_mlp": False,
        },
        "scorer": "atp_ig",
        "granularity": "head_mlp",
        "nodes": nodes,
        "nodes_measured": measured,
        "edges": [
            {"source": s, "reader": r, "score": float(v), "low": float(v) - 0.1, "high": float(v) + 0.1,
             "in_graph": bool(v < -0.1), "dropped": 0.05 if v < -0.1 else None}
            for (s, r), v in zip(edges, drawn, strict=True)
        ],
        "edges_scorer": "atp_ig",
        "edges_granularity": "block",
        "edges_pairs": 256,
        "edges_measured": measured,
        "edges_knockouts": {"random": 0.3, "random_mean": 0.2, "greedy": 0.4},
        "agreement": {"pearson": 0.9, "spearman": 0.85, "top_recall": 1.0, "modules": float(total)},
        "knockouts": {"random": 0.1, "random_mean": 0.05, "greedy": 0.2},
        "matters": matters,
        "edges_matter": matters,
        "compact": {"members": names[:3], "total": total, "faithfulness": 0.93,
                    "curve": [[0, 0.0], [3, 0.93], [total, 1.0]], "matters": matters},
        "necessary": [
            {"level": "parts", "members": names[:2], "total": total, "lost": 0.92,
             "curve": [[1, 0.5], [2, 0.92]], "matters": matters},
            {"level": "connections", "members": ["input->layers.0.kv.0.v", "layers.0.mlp->logits"],
             "total": len(edges), "lost": 0.91, "curve": [[1, 0.5], [2, 0.91]], "matters": matters},
        ],
        "overlaps": [{"over": "seeds", "names": ["0", "1"], "matrix": [[1.0, 0.8], [0.8, 1.0]], "mean": 0.8}],
        "units": [
            {"name": name, "score": s, "low": s - 0.1, "high": s + 0.1, "exact": s + 0.01}
            for name, s in (("layers.0.q_proj.row.5", -0.4), ("embed_tokens.row.7", 0.2), ("norm", -0.01))
        ],
        "units_granularity": "row",
        "units_prompts": 128,
        "pairs": {"asked": 400, "unaligned": 8, "made": 392, "fell": 96, "kept": 96, "judged": 48,
                  "moved": 350, "flipped": 127},
        "cost": {"forward_equivalents": 12.0, "edges_forward_equivalents": 12.0, "time_s": 84.0,
                 "process_peak_bytes": 7e8},
        "notes": ["memory ran out 1 time(s); went on with 16 pairs a pass"],
    }  # fmt: skip
