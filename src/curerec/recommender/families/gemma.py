"""Gemma 2 and 3: a norm before and after each of attention and MLP, heads wider or narrower than d / H.

What a module writes to the residual stream is the output of its post-norm. Gemma 2 caps the attention scores
with a tanh, which only eager attention computes; the embedding is multiplied by sqrt(d) as it is read.
"""

from dataclasses import replace

from curerec.recommender.families.base import Family
from curerec.recommender.families.llama import LLAMA

GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    layers="layers",
    attention_in="input_layernorm",
    attention_out="self_attn.o_proj",
    attention_write="post_attention_layernorm",
    mlp_in="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
    projections=LLAMA.projections,
)
GEMMA2 = replace(GEMMA3, name="gemma2", model_types=("gemma2",), attention="eager")
