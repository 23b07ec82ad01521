"""GPT-2: one map for queries, keys and values, weights stored [in, out], absolute positions, LayerNorms."""

from curerec.recommender.families.base import KEY, QUERY, VALUE, Family, Projection

GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    layers="h",
    attention_in="ln_1",
    attention_out="attn.c_proj",
    attention_write="attn.c_proj",
    mlp_in="ln_2",
    mlp_out="mlp",
    projections={
        "c_attn": Projection("attn.c_attn", (QUERY, KEY, VALUE)),
        "attn.c_proj": Projection("attn.c_proj", ("o_proj",)),
        "c_fc": Projection("mlp.c_fc", ("up_proj",)),
        "mlp.c_proj": Projection("mlp.c_proj", ("down_proj",)),
    },
    final_norm="ln_f",
    positions="wpe",
    transposed=True,
)
