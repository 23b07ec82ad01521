"""A model that answers with several: the shards' answers, mixed."""

from __future__ import annotations

import copy
from typing import Any

import torch

from curerec.methods.shards.training import Shards
from curerec.recommender.score import answer_logits
from curerec.recommender.storage import NOT_STORABLE


class Together(torch.nn.Module):
    """The mean of the P(yes) of the shards that a request left data to.

    Args:
        shards: trained; their frozen weights are held once.

    Source: Bourtoule et al. 2021 (SISA), arXiv 1912.03817, section 4.3 (aggregation by averaging).
    """

    def __init__(self, shards: Shards) -> None:
        super().__init__()
        frozen = {id(p): p for p in shards.work.parameters() if not p.requires_grad}
        self.models = torch.nn.ModuleList(
            copy.deepcopy(shards.model_of(k), dict(frozen)) for k in shards.left
        )
        self.config = shards.work.config
        setattr(self, NOT_STORABLE, "several models answer together, and a folder holds one")
        self.eval()

    def probabilities(self, ids: torch.Tensor, last: torch.Tensor, answers: tuple[int, int]) -> torch.Tensor:
        """Every shard's answers, [shards, batch, 2]."""
        return torch.stack([answer_logits(m, ids, last, answers).softmax(-1) for m in self.models])

    def answer_logits(self, ids: torch.Tensor, last: torch.Tensor, answers: tuple[int, int]) -> torch.Tensor:
        """Logits whose softmax is the mixed answer, [batch, 2]; called by ``score.answer_logits``."""
        return self.probabilities(ids, last, answers).mean(0).clamp_min(1e-12).log()


def last_state(model: Any, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Last hidden state at the answer position, float32 [batch, d_model]."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[torch.arange(len(last), device=ids.device), last].float()
