"""Edge scores: what each source's difference is worth to each reader of the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from curerec.circuits.activations import recording, sites_of
from curerec.circuits.attribution import Context, between, differences
from curerec.circuits.edge_taps import Answer, taps
from curerec.circuits.passes import (
    Cost,
    PairBatch,
    at_answer,
    each_batch,
    frozen,
    margin,
    numpy_type,
)
from curerec.circuits.scorers.atp_ig import Rule, points
from curerec.circuits.scorers.relp import linearised
from curerec.circuits.wiring import INPUT, wiring_of
from curerec.errors import ConfigError
from curerec.prompts.encoding import Prompts
from curerec.recommender.lean import can_be_lean
from curerec.recommender.score import answer_logits, wide

EDGE_SCORERS = ("atp", "atp_ig", "relp")


@dataclass(frozen=True)
class EdgeScores:
    """Scores of all edges, per example.

    Attributes:
        sources, readers: as in :class:`curerec.circuits.wiring.Wiring`.
        source, reader: int [edges], indices into those.
        values: float32 [n, edges] (float64 of a float64 model); negative where the edge supports the answer.
        scorer: ``atp``, ``atp_ig`` or ``relp``.
        cost: passes and memory.
    """

    sources: tuple[str, ...]
    readers: tuple[str, ...]
    source: np.ndarray
    reader: np.ndarray
    values: np.ndarray = field(repr=False)
    scorer: str
    cost: Cost

    @cached_property
    def names(self) -> tuple[str, ...]:
        """``source->reader`` of every edge."""
        return tuple(
            f"{self.sources[s]}->{self.readers[r]}" for s, r in zip(self.source, self.reader, strict=True)
        )

    def with_more(self, more: EdgeScores) -> EdgeScores:
        """These scores, and after them those of further pairs of the same model."""
        return replace(
            self, values=np.concatenate([self.values, more.values]), cost=self.cost.with_more(more.cost)
        )

    def of_sources(self) -> np.ndarray:
        """Sum of each source's outgoing edges, [n, sources]: the node scores, ``input`` first."""
        out = np.zeros((len(self.sources), len(self.values)), self.values.dtype)
        np.add.at(out, self.source, self.values.T)
        return out.T


def edge_scores(
    model: Any,
    clean: Prompts,
    corrupt: Prompts,
    answers: tuple[int, int],
    *,
    scorer: str = "atp",
    steps: int = 5,
    rule: Rule = "midpoint",
    batch_size: int = 64,
) -> EdgeScores:
    """``score(u -> v) = sum over positions of <what u writes at x' - at x, dm / d input of v>``.

    The input of a head's queries, of a group's keys and values, of an MLP and of the logits is the residual
    stream, read through their norm at x. The backward pass brings the readers' gradients layer by layer; each
    is met by the sources below it one source layer at a time and then dropped. Beside the forward pass
    only L x B x T x (H d_head + d_model) differences and one layer of sources and readers are held.

    Where a norm follows the attention (Gemma), a head writes its first-order effect on that norm's output.

    Args:
        model: decoder of a known family.
        clean, corrupt: aligned prompts, [n].
        answers: token ids of (no, yes).
        scorer: ``atp``, ``atp_ig`` or ``relp``.
        steps, rule: of ``atp_ig``.
        batch_size: pairs a pass.

    Raises:
        ConfigError: a scorer that has no edges.
        PromptError: pairs are missing or do not align.

    Source: Syed et al. 2023 (EAP), Hanna et al. 2024 (EAP-IG); keys and values belong to a group of heads
        here, where those give each head its own copy.
    """
    if scorer not in EDGE_SCORERS:
        raise ConfigError(
            "has no edge scores", where=f"scorer {scorer!r}", mend=f"Use {', '.join(EDGE_SCORERS)}"
        )
    wiring, sites = wiring_of(model), sites_of(model)
    alphas: Sequence[float] = points(steps, rule) if scorer == "atp_ig" else (1.0,)
    context: Context = linearised if scorer == "relp" else lambda model: nullcontext()
    source, reader = np.nonzero(wiring.mask)
    values = np.zeros((len(clean), len(source)), numpy_type(model))
    cost = Cost()
    lean = sites.n_layers > 1 and can_be_lean(model)
    once = tuple(alphas) == (1.0,)  # the pass whose gradient is taken is the clean one itself

    def work(batch: PairBatch) -> None:
        answer, cut = Answer(batch.last), lean and batch.clean.shape[1] > 1
        if once:
            with torch.no_grad(), at_answer(model, batch.last, cut), recording(sites) as deltas:
                answer_logits(model, batch.corrupt, batch.last, answers)
        else:
            deltas = differences(model, sites, batch, answers, lean=cut)
        top = {f"layers.{sites.n_layers - 1}.{part}" for part in ("attn", "mlp")}
        for name in top:
            deltas[name] = answer.of(deltas[name])

        def subtract(name: str, a: torch.Tensor) -> None:
            a = a.detach()
            deltas[name] = deltas[name] - (answer.of(a) if name in top else a)

        shape = (len(batch.index), len(wiring.sources), len(wiring.readers))
        total = torch.zeros(shape, dtype=wide(deltas[INPUT]).dtype, device=batch.clean.device)
        for alpha in alphas:
            x = between(model, batch, alpha)
            with (
                # Before ``relp`` cuts off queries and keys: theirs is the gradient after that.
                taps(wiring, deltas, total, answer, fixed_scale=scorer == "relp", lean=cut),
                context(model),
                at_answer(model, batch.last, cut),
                recording(sites, into=subtract) if once else nullcontext(),
            ):
                logits = answer_logits(model, batch.clean, batch.last, answers, inputs_embeds=x)
                # Inside, since a checkpointed layer is run again on the way back.
                torch.autograd.grad(margin(logits, batch.label).sum(), x)
        values[batch.index] = (total / len(alphas))[:, source, reader].cpu().numpy()
        cost.forwards += (1 + len(alphas) + (not once)) * len(batch.index)
        cost.backwards += len(alphas) * len(batch.index)

    with frozen(model):
        each_batch(model, clean, corrupt, batch_size, work, cost)
    return EdgeScores(wiring.sources, wiring.readers, source, reader, values, scorer, cost)
