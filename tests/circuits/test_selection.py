"""Choosing the size of a circuit: the grid is refined, and other ways than faithfulness are named."""

from __future__ import annotations

import numpy as np
import pytest

from curerec.circuits.compact import compact
from curerec.circuits.faithfulness import Faithfulness
from curerec.circuits.necessary import necessary
from curerec.circuits.selection import selecting, sizes_to_judge, smallest_prefix
from curerec.errors import ConfigError


def judging(f):
    asked = []

    def judge(sizes):
        asked.extend(sizes)
        return [(n, f(n)) for n in sizes]

    return judge, asked


@pytest.mark.parametrize("total", [10, 49, 300, 756, 3628])
@pytest.mark.parametrize("share", [0.0, 0.11, 0.5, 0.77, 1.0])
def test_the_smallest_prefix_is_found_to_the_element(total, share):
    wanted = round(share * total)
    judge, asked = judging(lambda n: float(n >= wanted))
    grid = sizes_to_judge(total)
    sizes, curve, at = smallest_prefix(judge, grid, 0.9)
    assert sizes[at] == wanted and curve[at] == (wanted, 1.0)
    assert sizes == sorted(set(sizes)) and [n for n, _ in curve] == sizes
    assert len(asked) <= len(grid) + np.ceil(np.log2(total))


def test_no_size_is_added_to_a_grid_that_has_them_all():
    judge, asked = judging(lambda n: n / 20)
    sizes, _, at = smallest_prefix(judge, sizes_to_judge(20), 0.9)
    assert asked == sizes == list(range(21)) and sizes[at] == 18


def test_where_no_size_is_faithful_all_are_taken():
    judge, asked = judging(lambda n: 0.0)
    sizes, _, at = smallest_prefix(judge, [0, 4, 9], 0.9)
    assert sizes[at] == 9 and asked == [0, 4, 9]


def test_of_several_crossings_one_on_the_path_is_taken():
    """Faithful from 12 to 15 and from 30 on; the grid sees 10 and 40. The prefix passes, one less fails."""
    f = {n: float(12 <= n <= 15 or n >= 30) for n in range(41)}
    sizes, curve, at = smallest_prefix(judging(f.get)[0], [0, 10, 40], 0.9)
    assert curve[at][1] == 1.0 and f[sizes[at] - 1] == 0.0


def test_the_fewest_and_the_necessary_are_found_to_the_element():
    """Of 300 parts 37 (the last to be taken out) are enough, and the loss of 83 supporting ones is."""

    def margins(sets):
        return np.asarray([[float(sum(k < 37 for k in s)) / 37] * 3 for s in sets])

    f = Faithfulness(margins, 300)
    gap = float(f.full.mean() - f.empty.mean())
    worth = np.where(np.arange(300) < 37, -gap / 37, 0.0)
    found = compact(f, f, effects=lambda out: np.where(np.isin(np.arange(300), list(out)), 0, worth))
    assert len(found.members) == 34  # the fewest of 37 that keep nine tenths
    needed = necessary(f, worth - 1e-9 * (300 - np.arange(300)), threshold=0.9)
    assert len(needed.members) == 34 and needed.lost >= 0.9
    assert dict(needed.curve)[33] < 0.9


@pytest.mark.parametrize("text", ["", "top", "top:", "top:0", "top:-1", "top:1.5", "best", "threshold:nan"])
def test_other_ways_are_refused(text):
    with pytest.raises(ConfigError, match=r"top:K"):
        selecting(text)


def test_the_ways_by_scores():
    scores = np.array([[1.0, -6.0, 0.2, 3.0], [1.0, -4.0, -0.2, 3.0]])
    assert selecting("faithful").first(scores) is None
    assert selecting("top:2").first(scores) == (1, 3) and selecting("top:9").first(scores) == (1, 3, 0, 2)
    assert selecting("threshold:1").first(scores) == (1, 3, 0)
