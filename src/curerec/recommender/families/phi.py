"""Phi (1, 1.5, 2): attention and MLP side by side behind one norm, biases, rotation of part of a head."""

from curerec.recommender.families.base import KEY, QUERY, VALUE, Family, Projection

PHI = Family(
    name="phi",
    model_types=("phi",),
    layers="layers",
    attention_in="input_layernorm",
    attention_out="self_attn.dense",
    attention_write="self_attn.dense",
    mlp_in="input_layernorm",
    mlp_out="mlp",
    projections={
        "q_proj": Projection("self_attn.q_proj", (QUERY,)),
        "k_proj": Projection("self_attn.k_proj", (KEY,)),
        "v_proj": Projection("self_attn.v_proj", (VALUE,)),
        "dense": Projection("self_attn.dense", ("o_proj",)),
        "fc1": Projection("mlp.fc1", ("up_proj",)),
        "fc2": Projection("mlp.fc2", ("down_proj",)),
    },
    final_norm="final_layernorm",
)
