"""The vocabulary's probabilities are the model's own, caps included, and renormalise to the two answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from curerec.recommender.score import score
from curerec.recommender.vocabulary import vocabulary_probabilities
from made_families import made_family_model
from made_models import made_prompts


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi"])
def test_parity_with_the_whole_model(family):
    prompts, encoder = made_prompts(6)
    model = made_family_model(family, len(encoder.tokenizer))
    found = vocabulary_probabilities(model, prompts, batch_size=4)
    for i in range(len(prompts)):
        ids = torch.from_numpy(prompts.ids[prompts.offsets[i] : prompts.offsets[i + 1]])[None]
        with torch.inference_mode():
            theirs = model(input_ids=ids).logits[0, -1].float().softmax(-1)
        assert found[i] == pytest.approx(theirs.numpy(), abs=1e-5)
    logits = score(model, prompts, encoder.answers)
    pair = found[:, list(encoder.answers)]
    assert pair[:, 1] / pair.sum(1) == pytest.approx(expit(logits[:, 1] - logits[:, 0]), abs=1e-5)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
