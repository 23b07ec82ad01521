"""Another user's prompt as a twin: as long, with the other answer, drawn anew by the seed."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.errors import PromptError
from curerec.prompts.others import other_prompts
from made_models import made_prompts

PROMPTS, _ = made_prompts(40)


@pytest.mark.parametrize("opposite", [True, False])
def test_partners_are_as_long_and_of_the_label_asked_for(opposite):
    kept, partner = other_prompts(PROMPTS, opposite=opposite, seed=1)
    assert len(kept) == len(partner) and (kept != partner).all() and len(set(kept)) == len(kept)
    np.testing.assert_array_equal(PROMPTS.lengths[kept], PROMPTS.lengths[partner])
    if opposite:
        assert (PROMPTS.label[kept] != PROMPTS.label[partner]).all()
    left = set(range(len(PROMPTS))) - set(kept.tolist())
    for k in left:  # those without a partner have none
        same = np.flatnonzero(PROMPTS.lengths == PROMPTS.lengths[k])
        same = same[PROMPTS.label[same] != PROMPTS.label[k]] if opposite else same[same != k]
        assert len(same) == 0


def test_the_seed_decides():
    one, two, other = (other_prompts(PROMPTS, opposite=False, seed=s)[1] for s in (3, 3, 4))
    assert (one == two).all() and not np.array_equal(one, other)


def test_prompts_that_are_all_of_different_lengths_are_refused():
    first = np.unique(PROMPTS.lengths, return_index=True)[1]
    with pytest.raises(PromptError, match="same number of tokens"):
        other_prompts(PROMPTS.take(first[:1]), opposite=False)
