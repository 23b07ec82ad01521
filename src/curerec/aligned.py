"""Counterfactual pairs of a saved recommender's examples, position by position of the same length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from curerec.circuits.activations import sites_of
from curerec.circuits.counterfactuals import outcomes
from curerec.circuits.patching import most_falling, patched_margins
from curerec.opened import Opened
from curerec.prompts.counterfactual import Start, counterfactual_pairs
from curerec.prompts.encoding import Encoder, Prompts, queries
from curerec.prompts.others import other_prompts
from curerec.records import Examples

Corruption = Literal["prompt", "history"]


@dataclass(frozen=True)
class Aligned:
    """Clean and corrupt prompts of the same lengths, and counts of what became of the prompts asked for."""

    clean: Prompts
    corrupt: Prompts
    counts: dict[str, int]

    def take(self, index: np.ndarray) -> Aligned:
        """The pairs at ``index``."""
        return Aligned(self.clean.take(index), self.corrupt.take(index), self.counts)


def aligned(
    opened: Opened,
    examples: Examples,
    corruption: Corruption,
    *,
    opposite: bool = True,
    template: str | None = None,
    start: Start = "item",
    seed: int = 0,
) -> Aligned:
    """Counterfactual pairs of examples.

    Args:
        opened: the recommender with its data.
        examples: to be corrupted.
        corruption: ``prompt`` (:func:`curerec.prompts.others.other_prompts`) or ``history``
            (:func:`curerec.prompts.counterfactual.counterfactual_pairs`).
        opposite: of ``prompt``.
        template: in place of the recommender's own.
        start: of ``history``: where PageRank starts.
        seed: of the draws.

    Raises:
        PromptError: no pair can be made.
    """
    made = opened.recommender
    encoder = Encoder(made.tokenizer, template or made.template, opened.data.titles["title"].to_pylist())
    wanted = queries(opened.data, examples)
    if corruption == "history":
        pairs = counterfactual_pairs(
            opened.data,
            wanted,
            encoder,
            opened.split.train.target,
            start=start,
            users=opened.data.user_code[examples.target],
            seed=seed,
        )
        counts = {
            "asked": len(examples),
            "unaligned": pairs.unaligned,
            "made": len(pairs),
            "replaced": int(pairs.replaced.sum()),
        }
        return Aligned(encoder.encode(pairs.clean), encoder.encode(pairs.corrupt), counts)
    prompts = encoder.encode(wanted)
    kept, partner = other_prompts(prompts, opposite=opposite, seed=seed)
    counts = {"asked": len(examples), "unaligned": len(examples) - len(kept), "made": len(kept)}
    return Aligned(prompts.take(kept), prompts.take(partner), counts)


def falling(
    opened: Opened,
    pool: Examples,
    corruption: Corruption,
    n: int,
    *,
    batch_size: int,
    template: str | None = None,
    start: Start = "item",
    seed: int = 0,
) -> Aligned:
    """At most ``n`` pairs whose margin falls: of the history kind the ones that fall most, else as drawn.

    The counts are of all pairs made, not of those kept: ``moved`` (by more than 0.001 logits), ``fell`` and
    ``flipped`` (the answer turned round). With the history kind ``replaced`` counts the items of all pairs.

    They are in no order: the first of them, which smaller searches take, are not of the first users alone.

    Args:
        opened, corruption, template, start, seed: as for :func:`aligned`.
        pool: examples to be corrupted.
        n: pairs.
        batch_size: pairs a pass.

    Raises:
        PromptError: no pair can be made, or none falls.
    """
    made = aligned(opened, pool, corruption, template=template, start=start, seed=seed)
    model, answers = opened.recommender.model, opened.recommender.answers
    most = n if corruption == "history" else len(made.clean)
    everything = set(sites_of(model).names)
    full, empty = patched_margins(
        model, made.clean, made.corrupt, answers, [set(), everything], batch_size=batch_size
    )
    counts = {**made.counts, **outcomes(full, empty)}
    fallen = most_falling(full - empty, most)
    kept = made.take(np.random.default_rng([seed, 101]).permutation(fallen)[:n])
    return replace(kept, counts=counts)
