"""What a scoring holds in memory: no more than the differences and one layer of edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curerec.circuits.attribution import between
from curerec.circuits.edges import edge_scores
from curerec.circuits.passes import PairBatch, frozen, margin
from curerec.circuits.scorers import atp, atp_ig
from curerec.circuits.wiring import wiring_of
from curerec.recommender.score import answer_logits, to_batch
from curerec.testing.memory import LivePeak
from made_families import made_family_model
from made_models import made_prompts, other_titles

CLEAN, ENCODER = made_prompts(8)
WORDS, ANSWERS = len(ENCODER.tokenizer), ENCODER.answers
CORRUPT = other_titles(CLEAN, WORDS)


def one_pass(model):
    """Peak of a forward and backward pass of all prompts at once, bytes."""
    ids, last = to_batch(CLEAN, np.arange(len(CLEAN)), torch.device("cpu"))
    label = torch.from_numpy(CLEAN.label.astype(np.int64))
    batch = PairBatch(np.arange(len(CLEAN)), ids, ids, last, label)
    with frozen(model), LivePeak() as memory:
        x = between(model, batch, 1.0)
        m = margin(answer_logits(model, ids, last, ANSWERS, inputs_embeds=x), label)
        torch.autograd.grad(m.sum(), x)
    return memory.peak


@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_scores_hold_only_the_differences(model_type, layers):
    model = made_family_model(model_type, WORDS, num_hidden_layers=layers)
    wiring, c = wiring_of(model), model.config
    tokens = len(CLEAN) * int(CLEAN.lengths.max())
    # L x B x T x (H d_head + d_model) values, and the same of the embedding output.
    values = (layers * (wiring.n_heads * wiring.width + c.hidden_size) + 4 * c.hidden_size) * tokens
    forward = one_pass(model)
    for score in (atp.score, atp_ig.score):
        with LivePeak() as memory:
            score(model, CLEAN, CORRUPT, ANSWERS)
        assert memory.peak <= forward + 4 * values, (memory.peak - forward, 4 * values)
    # One layer of edge expansion: its readers' gradients and its heads' writes, and norms kept on the way.
    width = wiring.n_heads + 2 * wiring.n_kv + wiring.n_heads + 4
    expansion = (3 * width + 2 * layers * 4) * c.hidden_size * tokens
    with LivePeak() as memory:
        edge_scores(model, CLEAN, CORRUPT, ANSWERS)
    assert memory.peak <= forward + 4 * (values + expansion)


def test_edges_do_not_grow_with_the_square_of_the_layers():
    """Twice the layers, four times the edges, twice the memory."""

    def above(layers):
        model = made_family_model("llama", WORDS, num_hidden_layers=layers)
        with LivePeak() as memory:
            edge_scores(model, CLEAN, CORRUPT, ANSWERS)
        return memory.peak

    assert above(8) - above(4) <= 1.25 * 2 * (above(4) - above(2))


def test_what_is_counted():
    with LivePeak() as memory:
        x = torch.ones(100)
        x.add_(1)
        x[:10].sum()
        y = x * 2
        del x, y
    assert memory.live == 0 and memory.peak == 800
