"""What became of the prompts that counterfactuals were asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from curerec.circuits.activations import sites_of
from curerec.circuits.passes import MOVED
from curerec.circuits.patching import patched_margins
from curerec.data.popularity import popularity_decile
from curerec.prompts.counterfactual import Pairs
from curerec.prompts.encoding import Encoder
from curerec.records import Interactions


@dataclass(frozen=True)
class CounterfactualReport:
    """Counts of prompts, from asked for to flipped.

    Attributes:
        asked: prompts that a counterfactual was asked for.
        unaligned: of these, without a replacement of the same length and popularity.
        made: pairs.
        aligned: pairs whose two prompts have the same number of tokens (all of them, or something is wrong).
        replaced: history items replaced, over all pairs.
        same_decile: share of the replaced items whose replacement is of the same popularity decile.
        moved: pairs whose margin changes by more than 0.001 logits.
        fell: pairs whose margin falls: what was replaced argued for the label.
        flipped: pairs whose answer changes.
        mean_fall: mean fall of the margin over all pairs, logits.
    """

    asked: int
    unaligned: int
    made: int
    aligned: int
    replaced: int
    same_decile: float
    moved: int
    fell: int
    flipped: int
    mean_fall: float

    def counts(self) -> dict[str, int]:
        """The counts alone, for :attr:`curerec.records.Circuit.pairs`."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int)}


def counterfactual_report(
    model: Any,
    pairs: Pairs,
    encoder: Encoder,
    data: Interactions,
    train_rows: np.ndarray,
    *,
    deciles: int = 10,
    batch_size: int = 64,
) -> CounterfactualReport:
    """Count what became of the prompts, by running the model on both of each pair.

    Args:
        model: decoder of a known family.
        pairs: from :func:`curerec.prompts.counterfactual.counterfactual_pairs`.
        encoder: that they were made for.
        data: interactions.
        train_rows: rows that the popularity was counted over.
        deciles: number of popularity classes.
        batch_size: pairs a pass.

    Source: METHOD section 2.
    """
    clean, corrupt = encoder.encode(pairs.clean), encoder.encode(pairs.corrupt)
    same_length = clean.lengths == corrupt.lengths
    index = np.flatnonzero(same_length)
    everything = set(sites_of(model).names)
    full, empty = patched_margins(
        model,
        clean.take(index),
        corrupt.take(index),
        encoder.answers,
        [set(), everything],
        batch_size=batch_size,
    )
    decile = popularity_decile(data, train_rows, deciles)
    changed = pairs.clean.history != pairs.corrupt.history
    old, new = pairs.clean.history[changed], pairs.corrupt.history[changed]
    return CounterfactualReport(
        asked=len(pairs) + pairs.unaligned,
        unaligned=pairs.unaligned,
        made=len(pairs),
        aligned=int(same_length.sum()),
        replaced=int(changed.sum()),
        same_decile=float((decile[old] == decile[new]).mean()) if len(old) else float("nan"),
        moved=int((np.abs(full - empty) > MOVED).sum()),
        fell=int((full - empty > MOVED).sum()),
        flipped=int(((full > 0) != (empty > 0)).sum()),
        mean_fall=float((full - empty).mean()),
    )
