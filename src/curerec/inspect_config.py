"""Sizes and choices of an examination of a circuit, as the command's options give them."""

from __future__ import annotations

from pydantic import Field, field_validator

from curerec.aligned import Corruption
from curerec.circuits import DEFAULT
from curerec.config import MAX_SEED, Strict
from curerec.prompts.counterfactual import Start
from curerec.recommender.units import Granularity


class InspectConfig(Strict):
    """Sizes and choices of an examination. Nothing here is chosen on test data."""

    corruption: Corruption = Field(
        "prompt", description="another user's prompt of the same length, or history items by PageRank"
    )
    start: Start = Field("item", description="of history: where PageRank starts, item or user")
    scorer: str = DEFAULT
    pairs: int = Field(
        128,
        gt=3,
        description="counterfactual pairs at most, half to rank and half to judge; 64 to begin with",
    )
    pool: int = Field(800, gt=3, description="validation prompts that pairs are made from")
    faithfulness: float = Field(0.9, gt=0, le=1)
    select: str = Field("faithful", description="parts: faithful, top:K or threshold:X (logits)")
    select_edges: str = Field("faithful", description="connections, likewise")
    edges: int = Field(128, ge=0, description="pairs that the edges are scored on at first; 0: no edges")
    edges_most: int = Field(
        512,
        gt=3,
        description="pairs they are scored on at most, where resamples overturn them; of history no more "
        "than pairs",
    )
    test: int = Field(400, ge=0, description="test prompts of the knock-out; 0: none")
    reading: int = Field(128, ge=0, description="prompts whose attention is read; 0: none")
    compact: bool = Field(True, description="also look for the fewest parts that carry the answer together")
    units: Granularity | None = Field(
        None, description="also what fine-tuning stored in each update unit of this size; none: left out"
    )
    unit_prompts: int = Field(128, gt=1, description="validation prompts that units are scored on")
    variants: int = Field(
        48, ge=0, description="pairs of each other seed, template, scorer, at least 2; 0: none"
    )
    draws: int = Field(200, gt=1, description="bootstrap resamples")
    batch_size: int = Field(32, gt=0)
    seed: int = Field(0, ge=0, le=MAX_SEED)

    @field_validator("variants")
    @classmethod
    def _halves(cls, value: int) -> int:
        if value == 1:
            raise ValueError("give 0 (none) or at least 2 pairs: one half of them ranks, one judges")
        return value
