"""Llama and its kin: separate q, k, v and o projections, a gated MLP, pre-norms.

Qwen2 adds biases to q, k and v, Qwen3 norms every head's queries and keys, Mistral may attend to a window.
"""

from curerec.recommender.families.base import Family, separate

LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    layers="layers",
    attention_in="input_layernorm",
    attention_out="self_attn.o_proj",
    attention_write="self_attn.o_proj",
    mlp_in="post_attention_layernorm",
    mlp_out="mlp",
    projections=separate(
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ),
)
