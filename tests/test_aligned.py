"""Counterfactual pairs of a saved recommender: what became of all that were made, and which are kept."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.aligned import aligned, falling
from curerec.recommender.score import score
from made_recommender import opened, trained


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return opened(trained(tmp_path_factory.mktemp("aligned")))


@pytest.mark.parametrize("corruption", ["prompt", "history"])
@pytest.mark.parametrize("n", [4, 500])
def test_counts_are_of_all_pairs_made_however_few_are_kept(made, corruption, n):
    pool = made.split.valid
    kept = falling(made, pool, corruption, n, batch_size=8, seed=3)
    whole = aligned(made, pool, corruption, seed=3)
    recommender = made.recommender
    margins = []
    for prompts in (whole.clean, whole.corrupt):
        z = score(recommender.model, prompts, recommender.answers)
        margins.append((2.0 * whole.clean.label - 1) * (z[:, 1] - z[:, 0]))
    clean, corrupt = margins
    counts = kept.counts
    assert counts["asked"] == len(pool) == counts["made"] + counts["unaligned"]
    assert counts["made"] == len(whole.clean)
    assert counts["moved"] == (np.abs(clean - corrupt) > 1e-3).sum()
    assert counts["fell"] == (clean > corrupt).sum() > 4
    assert counts["flipped"] == ((clean > 0) != (corrupt > 0)).sum()
    assert len(kept.clean) == min(n, counts["fell"])
    assert counts.get("replaced", 0) >= (counts["made"] if corruption == "history" else 0)
