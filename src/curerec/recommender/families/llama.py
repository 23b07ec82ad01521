"""Llama and its kin: separate q, k, v and o projections, a gated MLP, pre-norms."""

from curerec.recommender.families.base import Family

LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    layers="layers",
    attention_out="self_attn.o_proj",
    mlp_out="mlp",
    projections={
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "o_proj": "self_attn.o_proj",
        "gate_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "down_proj": "mlp.down_proj",
    },
)
