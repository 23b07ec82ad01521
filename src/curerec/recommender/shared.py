"""Prompts that begin alike: what they share is computed once, its keys and values are handed to each.

A list to rank is one history with a hundred candidates: nine tenths of its tokens are the same. Prompts of
single examples share little (their histories differ; docs/speed.md) and are scored as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from curerec.prompts.encoding import Prompts
from curerec.recommender.lean import cache_name_of, can_be_lean, hooked

FEWEST = 4  # prompts that must share a beginning
LEAST = 0.5  # share of a prompt that it must be


@dataclass(frozen=True)
class Run:
    """Neighbouring prompts, ``start`` to ``end``, whose first ``length`` tokens are the same."""

    start: int
    end: int
    length: int


def runs(prompts: Prompts) -> list[Run]:
    """Runs of neighbours that share at least half of their tokens, in order; the rest is in none.

    Args:
        prompts: [n].
    """
    found: list[Run] = []
    rows = np.split(prompts.ids, prompts.offsets[1:-1]) if len(prompts) else []
    start = length = longest = 0
    for k in range(1, len(rows) + 1):
        if k < len(rows):
            row, first = rows[k], rows[start]
            # One token of each must be left to compute: the answer is read there.
            most = min(len(row), len(first)) - 1
            most = min(most, length) if k - start > 1 else most
            differ = np.flatnonzero(row[:most] != first[:most])
            shared = int(differ[0]) if len(differ) else most
            longest = max(longest, len(row), len(first))
            if shared >= LEAST * longest:
                length = shared
                continue
        if k - start >= FEWEST:
            found.append(Run(start, k, length))
        start, length, longest = k, 0, 0
    return found


def can_share(model: Any) -> bool:
    """Whether keys and values may be handed on: a known family, and nobody listens to what it computes."""
    return not hasattr(model, "answer_logits") and not hooked(model) and can_be_lean(model)


def packed(found: list[Run], batch_size: int) -> list[list[Run]]:
    """Runs in batches of about ``batch_size`` prompts whose shared parts are of like length."""
    out: list[list[Run]] = []
    for run in sorted(found, key=lambda r: -r.length):
        for start in range(run.start, run.end, batch_size):
            piece = Run(start, min(start + batch_size, run.end), run.length)
            if out and sum(r.end - r.start for r in out[-1]) + piece.end - piece.start <= batch_size:
                out[-1].append(piece)
            else:
                out.append([piece])
    return out


def last_states(base: Any, prompts: Prompts, batch: list[Run], device: torch.device) -> torch.Tensor:
    """Final states at the answer positions of all prompts of some runs, [prompts, width].

    The shortest of the shared parts is what all runs of the batch share: nothing is padded on the left, so
    positions, masks and sliding windows are the model's own.

    Args:
        base: Hugging Face decoder with a head.
        prompts: that the runs are of.
        batch: runs.
        device: of the model.
    """
    from curerec.recommender.score import on  # which asks for lists here

    length = min(run.length for run in batch)
    index = np.concatenate([np.arange(run.start, run.end) for run in batch])
    owner = np.repeat(np.arange(len(batch)), [run.end - run.start for run in batch])
    ids, last = (on(device, x) for x in prompts.padded(index))
    heads = ids.index_select(0, on(device, np.unique(owner, return_index=True)[1]))[:, :length]
    cache = DynamicCache(config=base.config)
    decoder = base.get_decoder()
    given: dict[str, Any] = {"use_cache": True, cache_name_of(type(decoder)) or "past_key_values": cache}
    decoder(input_ids=heads, **given)
    cache.batch_select_indices(on(device, owner))
    out = decoder(input_ids=ids[:, length:], **given).last_hidden_state
    return out[torch.arange(len(index), device=device), last - length]
