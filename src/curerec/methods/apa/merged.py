"""One model whose adapter is a different mix of the shards' adapters for every prompt of a batch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from curerec.methods.shards.together import Together, last_state
from curerec.methods.shards.training import Shards
from curerec.prompts.encoding import Prompts
from curerec.recommender.lora import factors_of, with_factors
from curerec.recommender.score import answer_logits, by_length, device_of, to_batch

#: Cosine from which a validation prompt is the prompt that is asked about itself; rounding differs with the
#: batch's padding.
SAME = 1 - 1e-5


@torch.no_grad()
def states_of(base: Any, prompts: Prompts, *, batch_size: int = 128) -> np.ndarray:
    """Directions of the base's states at the answer positions, float32 [n, d_model]."""
    out = np.zeros((len(prompts), base.config.hidden_size), np.float32)
    for index in by_length(prompts, batch_size):
        state = last_state(base, *to_batch(prompts, index, device_of(base)))
        out[index] = F.normalize(state, dim=-1).cpu().numpy()
    return out


def attention(
    states: torch.Tensor, keys: torch.Tensor, error: torch.Tensor, tau: float, neighbours: int
) -> torch.Tensor:
    """Weights of the shards for each prompt, ``softmax_k(-tau mean error of k on its neighbours)``.

    A validation prompt that is asked about itself is no neighbour of its own: its weights would be taken from
    its own label, and the answers on D_v, by which settings are chosen and utility is judged, would be better
    than on any other data. With no more than ``neighbours`` validation prompts all are near, so it is left
    out of the mean, too; where nobody else is there, all shards weigh the same.

    Args:
        states: directions of the prompts, [batch, d].
        keys: of the validation prompts, [n, d].
        error: probability that each shard gives to the wrong answer there, [shards, n].
        tau: sharpness.
        neighbours: of the nearest validation prompts.

    Returns:
        [batch, shards], rows summing to 1.

    Source: Hu et al. 2024 (APA), arXiv 2404.10327, section 4.3 (sample-adaptive attention).
    """
    alike = states @ keys.T
    itself = alike > SAME
    # Below any cosine, so that even the least alike of the others comes before.
    near = alike.masked_fill(itself, -2.0).topk(min(neighbours, len(keys)), dim=-1).indices
    others = (~itself).gather(1, near).to(error.dtype)
    mean = (error[:, near] * others).sum(-1) / others.sum(-1).clamp_min(1)
    return torch.softmax(-tau * mean.T, dim=-1)


class Adaptive(Together):
    """Answers of merged adapters: ``W x + sum_k w_k B_k A_k x``, w of each prompt its own.

    With LoRA the shards' adapters stand side by side in one of joint rank, and what leaves A is scaled block
    by block: one pass for the whole batch, whatever its weights. With full fine-tuning no such form exists,
    and the shards' probabilities are mixed by the same weights.

    Args:
        shards: trained.
        base: the model before fine-tuning, whose states decide who is near.
        keys, error, tau, neighbours: as for :func:`attention`.
    """

    def __init__(
        self,
        shards: Shards,
        base: Any,
        keys: torch.Tensor,
        error: torch.Tensor,
        *,
        tau: float,
        neighbours: int,
    ) -> None:
        super().__init__(shards)
        self.base, self.tau, self.neighbours = base.eval(), tau, neighbours
        self.register_buffer("keys", keys)
        self.register_buffer("error", error)
        self.merged: Any = None
        if hasattr(shards.work, "peft_config"):
            parts = [factors_of(shards.model_of(k)) for k in shards.left]
            joint = {
                path: (torch.cat([p[path][0] for p in parts]), torch.cat([p[path][1] for p in parts], dim=1))
                for path in parts[0]
            }
            self.merged = with_factors(shards.work, joint)
            self.models = torch.nn.ModuleList()
            self.eval()

    def answer_logits(self, ids: torch.Tensor, last: torch.Tensor, answers: tuple[int, int]) -> torch.Tensor:
        states = F.normalize(last_state(self.base, ids, last), dim=-1)
        weight = attention(
            states, self.get_buffer("keys"), self.get_buffer("error"), self.tau, self.neighbours
        )
        if self.merged is None:
            said = self.probabilities(ids, last, answers)
            return (weight.T[..., None] * said).sum(0).clamp_min(1e-12).log()

        def scaled(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            by_rank = weight.repeat_interleave(output.shape[-1] // weight.shape[1], dim=-1)
            return output * by_rank[:, None].to(output.dtype)

        with ExitStack() as stack:
            for name, module in self.merged.named_modules():
                if ".lora_A." in name:
                    stack.callback(module.register_forward_hook(scaled).remove)
            return answer_logits(self.merged, ids, last, answers)
