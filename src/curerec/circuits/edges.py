"""Edge scores: what each source's difference is worth to each reader of the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from curerec.circuits.activations import Activations, sites_of
from curerec.circuits.attribution import Context, between, differences
from curerec.circuits.passes import Cost, PairBatch, each_batch, frozen, margin, numpy_type
from curerec.circuits.scorers.atp_ig import Rule, points
from curerec.circuits.scorers.relp import linearised
from curerec.circuits.wiring import INPUT, NormAt, Wiring, weight_of, wiring_of
from curerec.errors import ConfigError
from curerec.prompts.encoding import Prompts
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
        return self._summed(self.source, len(self.sources))

    def of_readers(self) -> np.ndarray:
        """Sum of each reader's incoming edges, [n, readers]."""
        return self._summed(self.reader, len(self.readers))

    def _summed(self, owner: np.ndarray, size: int) -> np.ndarray:
        out = np.zeros((size, len(self.values)), self.values.dtype)
        np.add.at(out, owner, self.values.T)
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

    def work(batch: PairBatch) -> None:
        deltas = differences(model, sites, batch, answers)
        shape = (len(batch.index), len(wiring.sources), len(wiring.readers))
        total = torch.zeros(shape, dtype=wide(deltas[INPUT]).dtype, device=batch.clean.device)
        for alpha in alphas:
            x = between(model, batch, alpha)
            with _taps(wiring, deltas, total, fixed_scale=scorer == "relp"), context(model):
                logits = answer_logits(model, batch.clean, batch.last, answers, inputs_embeds=x)
            torch.autograd.grad(margin(logits, batch.label).sum(), x)
        values[batch.index] = (total / len(alphas))[:, source, reader].cpu().numpy()
        cost.forwards += (2 + len(alphas)) * len(batch.index)
        cost.backwards += len(alphas) * len(batch.index)

    with frozen(model):
        each_batch(model, clean, corrupt, batch_size, work, cost)
    return EdgeScores(wiring.sources, wiring.readers, source, reader, values, scorer, cost)


@contextmanager
def _taps(wiring: Wiring, deltas: Activations, total: torch.Tensor, *, fixed_scale: bool) -> Iterator[None]:
    """Forward hooks that leave gradient hooks on everything readers take in; these add to ``total``.

    A layer's readers are met with the sources when the gradient at its norm's input is complete, which is
    after those of its queries, keys, values and MLP.
    """
    grads: dict[tuple[int, str], torch.Tensor] = {}
    posts: dict[int, NormAt] = {}

    def meet(first: int, readers: torch.Tensor, reader: str) -> None:
        """Add <source, reader> for readers [r, batch, pos, d_model] from column ``first`` on."""
        at = slice(first, first + len(readers))
        for columns, sources in written(wiring, deltas, posts, wiring.sources_before(reader)):
            total[:, columns, at] += torch.einsum("sbtd,rbtd->bsr", sources, readers)

    def attention_ready(k: int, at: NormAt) -> Callable[[torch.Tensor], None]:
        def hook(_: torch.Tensor) -> None:
            for reading in wiring.layers[k].readings:
                weight = weight_of(reading.module)
                for kind, first, heads in reading.parts:
                    grad = grads.pop((k, kind), None)
                    if grad is None:  # ``relp`` sends nothing through queries and keys
                        continue
                    rows = weight[first : first + heads * wiring.width].unflatten(0, (heads, wiring.width))
                    pulled = torch.einsum("btnw,nwd->nbtd", wide(grad).unflatten(-1, (heads, -1)), rows)
                    columns = wiring.columns(k, kind)
                    meet(columns.start, at.pulled(pulled), wiring.readers[columns.start])

        return hook

    def mlp_ready(k: int, at: NormAt) -> Callable[[torch.Tensor], None]:
        def hook(_: torch.Tensor) -> None:
            column = wiring.mlp_reader(k)
            meet(column, at.pulled(wide(grads.pop((k, "mlp"))))[None], wiring.readers[column])

        return hook

    def logits_ready(grad: torch.Tensor) -> None:
        meet(len(wiring.readers) - 1, wide(grad)[None], wiring.readers[-1])

    def at_norm(ready: Any, k: int) -> Any:
        def hook(norm: Any, args: Any) -> None:
            args[0].register_hook(ready(k, NormAt.of(norm, args[0], fixed_scale=fixed_scale)))

        return hook

    def at_reading(k: int, reading: Any) -> Any:
        def hook(module: Any, args: Any, y: torch.Tensor) -> None:
            def store(grad: torch.Tensor) -> None:
                for kind, first, heads in reading.parts:
                    grads[k, kind] = grad[..., first : first + heads * wiring.width]

            y.register_hook(store)

        return hook

    def at_mlp(k: int) -> Any:
        def hook(module: Any, args: Any) -> Any:
            x = args[0].view_as(args[0])  # a tensor of its own: the norm's output may have other readers
            x.register_hook(lambda grad: grads.__setitem__((k, "mlp"), grad))
            return (x, *args[1:])

        return hook

    def at_post(k: int) -> Any:
        def hook(norm: Any, args: Any) -> None:
            posts[k] = NormAt.of(norm, args[0], fixed_scale=fixed_scale)

        return hook

    with ExitStack() as stack:

        def add(handle: Any) -> None:
            stack.callback(handle.remove)

        for k, layer in enumerate(wiring.layers):
            add(layer.attention_norm.register_forward_pre_hook(at_norm(attention_ready, k)))
            add(layer.mlp_norm.register_forward_pre_hook(at_norm(mlp_ready, k)))
            for reading in layer.readings:
                add(reading.module.register_forward_hook(at_reading(k, reading)))
            add(layer.mlp.register_forward_pre_hook(at_mlp(k)))
            if layer.post is not None:
                add(layer.post.register_forward_pre_hook(at_post(k)))
        add(
            wiring.final_norm.register_forward_pre_hook(
                lambda norm, args: (args[0].register_hook(logits_ready), None)[1]
            )
        )
        yield


def written(
    wiring: Wiring, deltas: Activations, posts: dict[int, NormAt], before: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """What the first ``before`` sources write differently, a source layer's heads (or MLP) at a time.

    Yields:
        Columns among the sources, and [sources, batch, pos, d_model] in at least single precision.
    """
    yield slice(0, 1), wide(deltas[INPUT])[None]
    for k, layer in enumerate(wiring.layers):
        heads = wiring.head_columns(k)
        if heads.stop > before:
            return
        weight = weight_of(layer.attention_out).unflatten(1, (wiring.n_heads, wiring.width))
        z = wide(deltas[f"layers.{k}.attn"]).unflatten(-1, (wiring.n_heads, wiring.width))
        sources = torch.einsum("bthw,dhw->hbtd", z, weight)
        yield heads, posts[k].pushed(sources) if k in posts else sources
        column = wiring.mlp_column(k)
        if column + 1 > before:
            return
        yield slice(column, column + 1), wide(deltas[f"layers.{k}.mlp"])[None]
