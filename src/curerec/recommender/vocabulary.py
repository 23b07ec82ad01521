"""The whole distribution over the vocabulary at the answer position, where two logits are not enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from curerec.prompts.encoding import Prompts
from curerec.recommender.score import by_length, device_of, to_batch, wide


@torch.inference_mode()
def vocabulary_probabilities(
    model: Any, prompts: Prompts, *, batch_size: int = 64
) -> Float32[np.ndarray, "n vocab"]:
    """Probabilities of every token as the answer.

    Args:
        model: Hugging Face decoder, plain or PEFT-wrapped.
        prompts: [n].
        batch_size: prompts a pass.

    Returns:
        float32 [n, vocab], rows summing to 1.

    Related: :func:`curerec.recommender.score.score`, which reads two rows alone and is far cheaper.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    cap = getattr(base.config, "final_logit_softcapping", None)
    device, training = device_of(model), model.training
    out = np.zeros((len(prompts), head.weight.shape[0]), np.float32)
    model.eval()
    try:
        for index in by_length(prompts, batch_size):
            ids, last = to_batch(prompts, index, device)
            hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            logits = wide(head(hidden[torch.arange(len(last), device=device), last]))
            logits = cap * torch.tanh(logits / cap) if cap else logits
            out[index] = logits.softmax(-1).cpu().numpy()
    finally:
        model.train(training)
    return out
