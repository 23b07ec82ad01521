"""Phi-3 and Phi-4: Llama with queries, keys and values in one map, and gate and up in another."""

from dataclasses import replace

from curerec.recommender.families.base import KEY, QUERY, VALUE, Projection
from curerec.recommender.families.llama import LLAMA

PHI3 = replace(
    LLAMA,
    name="phi3",
    model_types=("phi3",),
    projections={
        "qkv_proj": Projection("self_attn.qkv_proj", (QUERY, KEY, VALUE)),
        "o_proj": LLAMA.projections["o_proj"],
        "gate_up_proj": Projection("mlp.gate_up_proj", ("gate_proj", "up_proj")),
        "down_proj": LLAMA.projections["down_proj"],
    },
)
