"""Which heads read the liked list and which the candidate: where the answer position looks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from curerec.circuits.activations import sites_of
from curerec.circuits.passes import frozen, numpy_type
from curerec.circuits.stability import bootstrap_intervals
from curerec.errors import ModelError
from curerec.prompts.encoding import Prompts
from curerec.prompts.templates import PARTS
from curerec.recommender.score import answer_logits, by_length, device_of, to_batch, wide

REST = "frame"  # the template's own words
WHERE = (*PARTS, REST)


@dataclass(frozen=True)
class Reading:
    """Attention of heads from the answer position, by part of the prompt.

    Attributes:
        names: heads, [heads].
        parts: ``liked``, ``disliked``, ``candidate`` and ``frame`` (the template's words), [parts].
        mass: share of the attention that a part gets, per prompt, [n, heads, parts]; sums to 1.
        tokens: share of the tokens that a part has, per prompt, [n, parts]: what a head gives that looks
            everywhere alike.
    """

    names: tuple[str, ...]
    parts: tuple[str, ...]
    mass: np.ndarray
    tokens: np.ndarray

    def claims(self, *, draws: int = 200, seed: int = 0) -> list[dict[str, Any]]:
        """What each head reads, a dict a head: the part whose share of attention most exceeds its tokens'.

        A claim is made where the interval of that excess is above 0. The part is the largest of three, so
        that interval is one of 1 - 0.05 / 3 (Bonferroni): a head that reads none is claimed to read one in at
        most 5 % of cases. ``prompts`` is the share of the prompts in which the part gets more than its
        tokens' share: how common the claim is.

        Args:
            draws: bootstrap resamples; for the end of the wider interval at least 1,000.
            seed: of them.

        Returns:
            ``head``, ``part`` (None: nothing more than its share), ``mass``, ``low``, ``high`` (95 % interval
            of the mean mass, for itself), ``tokens``, ``prompts`` and ``by_part`` (mean mass of every part).
        """
        out = []
        for h, name in enumerate(self.names):
            mass = self.mass[:, h]
            excess = mass - self.tokens
            titles = excess[:, : len(PARTS)].mean(0)
            k = int(titles.argmax())
            level = 1 - 0.05 / len(PARTS)
            least = bootstrap_intervals(excess[:, [k]], draws=max(draws, 1000), level=level, seed=seed)[0][0]
            low, high = (float(v[0]) for v in bootstrap_intervals(mass[:, [k]], draws=draws, seed=seed))
            out.append(
                {
                    "head": name,
                    "part": self.parts[k] if least > 0 else None,
                    "mass": float(mass[:, k].mean()),
                    "low": low,
                    "high": high,
                    "tokens": float(self.tokens[:, k].mean()),
                    "prompts": float((excess[:, k] > 0).mean()),
                    "by_part": {p: float(v) for p, v in zip(self.parts, mass.mean(0), strict=True)},
                }
            )
        return out


def attention_reading(
    model: Any, prompts: Prompts, answers: tuple[int, int], *, batch_size: int = 16
) -> Reading:
    """Attention mass from the answer position to each part of the prompt, of every head.

    Fused kernels (``sdpa``) never form the weights, so the sample is run with ``eager`` attention; the model
    is left as it was. One row of each head's weights is kept a prompt, never the square.

    Args:
        model: decoder of a known family.
        prompts: a sample, [n]; their span map says what each token is.
        answers: token ids of (no, yes).
        batch_size: prompts a pass.

    Raises:
        ModelError: the model hands out no attention weights.

    Source: METHOD section 2 (span map). Where a head looks is no proof of what it does there: the score says
        whether it matters.
    """
    sites = sites_of(model)
    names = tuple(n for n in sites.names if ".head." in n)
    place = token_parts(prompts)
    mass = np.zeros((len(prompts), len(names), len(WHERE)), numpy_type(model))
    tokens = np.stack([(np.bincount(p, minlength=len(WHERE)) / len(p)) for p in place])
    device = device_of(model)
    with frozen(model), eager(model), torch.no_grad():
        for index in by_length(prompts, batch_size):
            ids, last = to_batch(prompts, index, device)
            part = torch.full(ids.shape, len(WHERE), device=device)  # padding is no part
            for row, i in enumerate(index):
                part[row, : len(place[i])] = torch.from_numpy(place[i]).to(device)
            onehot = torch.nn.functional.one_hot(part, len(WHERE) + 1)[..., :-1].float()
            rows: dict[int, torch.Tensor] = {}
            with _weights(model, sites.family, last, rows):
                answer_logits(model, ids, last, answers)
            for layer, weights in rows.items():  # [batch, heads, pos]
                columns = slice(layer * sites.n_heads, (layer + 1) * sites.n_heads)
                share = torch.einsum("bht,btp->bhp", wide(weights), onehot.to(wide(weights).dtype))
                mass[index, columns] = share.cpu().numpy()
            if len(rows) != sites.n_layers:
                raise ModelError(
                    "hands out no attention weights",
                    where=f"model type {model.config.model_type!r}",
                    mend="Leave out what the heads read (--reading 0)",
                )
    return Reading(names, WHERE, mass, tokens)


def token_parts(prompts: Prompts) -> list[np.ndarray]:
    """For every token of every prompt the index into :data:`WHERE`, int [length] each."""
    out = [np.full(n, len(PARTS)) for n in prompts.lengths]
    for prompt, start, stop, _, part in prompts.spans:
        out[prompt][start:stop] = part
    return out


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Eager attention inside, the implementation in force again afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _weights(model: Any, family: Any, last: torch.Tensor, rows: dict[int, torch.Tensor]) -> Iterator[None]:
    """Note the answer position's row of each layer's weights, [batch, heads, pos]."""
    batch = torch.arange(len(last), device=last.device)

    def noting(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            if isinstance(output, Sequence) and len(output) > 1 and torch.is_tensor(output[1]):
                rows[layer] = output[1][batch, :, last]

        return hook

    with ExitStack() as stack:
        for k, layer in enumerate(family.layer_list(model)):
            attention = layer.get_submodule(family.attention_out.rsplit(".", 1)[0])
            stack.callback(attention.register_forward_hook(noting(k)).remove)
        yield
