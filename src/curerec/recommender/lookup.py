"""The first layer's queries, keys and values, computed once a token and not once for each place it stands.

Before its attention the first layer sees of a token its embedding and nothing else, so what it makes of it is
the same in every prompt (positions are turned in afterwards). A catalogue has some thousand words, a test set
some hundred thousand tokens: with two layers a fifth of the products that :mod:`.lean` leaves are these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from curerec.errors import ModelError
from curerec.prompts.encoding import Prompts
from curerec.recommender.families import family_of
from curerec.recommender.families.base import KEY, QUERY, VALUE
from curerec.recommender.layers import entering
from curerec.recommender.lean import hooked, replaced_forward

REPEATS = 4  # times that a token must stand in the prompts, on average, for a table to pay


def can_look_up(model: Any) -> bool:
    """Whether the first layer's queries, keys and values are functions of the token alone, one module each.

    Not with learned positions (GPT-2), nor where one product gives several of them (Phi-3) or its input is
    read by the MLP as well (Phi); not in training, nor where somebody listens.
    """
    try:
        family = family_of(model)
        layers = family.layer_list(model)
    except (ModelError, AttributeError):
        return False
    embedding = family.decoder(model).get_input_embeddings()
    return (
        not hasattr(model, "answer_logits")
        and not model.training
        and family.positions is None
        and not family.parallel
        and {QUERY, KEY, VALUE} <= set(family.projections)
        and len(layers) > 1  # the last one is computed in a way of its own
        and not hooked(layers[0])
        and not hooked(embedding)
        and getattr(layers[0], "_compiled_call_impl", None) is None
    )


@contextmanager
def looked_up(model: Any, prompts: Prompts) -> Iterator[None]:
    """Passes over the prompts take the first layer's queries, keys and values from a table inside.

    The table is of the tokens that occur in the prompts and is made only where they occur often enough to pay
    for it. Exact up to the rounding of a product of another shape.

    Args:
        model: plain or PEFT-wrapped; adapters count with what they are worth when this is entered.
        prompts: all that will be passed over inside.
    """
    tokens = np.unique(prompts.ids)
    if REPEATS * len(tokens) > len(prompts.ids) or not can_look_up(model):
        yield
        return
    family = family_of(model)
    decoder = family.decoder(model)
    layer, embedding = family.layer_list(model)[0], decoder.get_input_embeddings()
    device = embedding.weight.device
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
    row_of = torch.zeros(embedding.weight.shape[0], dtype=torch.long, device=device)
    row_of[ids] = torch.arange(len(ids), device=device)
    rows: torch.Tensor = row_of[:0]
    embed = embedding.forward

    def remember(ids: torch.Tensor) -> torch.Tensor:
        nonlocal rows
        rows = row_of[ids]
        return embed(ids)  # type: ignore[no-any-return]

    with ExitStack() as stack:
        norm = layer.get_submodule(family.attention_in)
        # Some families scale embeddings before they enter.
        read = norm(entering(decoder, layer, ids[:, None]))[:, 0]
        for name in (QUERY, KEY, VALUE):
            module = layer.get_submodule(family.projections[name].path)
            stack.enter_context(replaced_forward(module, _rows_of(module(read), lambda: rows)))
        stack.enter_context(replaced_forward(norm, lambda x: x))
        stack.enter_context(replaced_forward(embedding, remember))
        yield


def _rows_of(table: torch.Tensor, rows: Any) -> Any:
    return lambda x: torch.nn.functional.embedding(rows(), table)
