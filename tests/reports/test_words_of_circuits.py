"""What a report says of circuits: heads, resamples, parts that no request can change."""

from __future__ import annotations

import pytest
from made_records import full_record

from curerec.reports.html import render


def test_what_the_heads_of_the_circuit_read() -> None:
    """Each claim with its numbers; nothing where it was not measured."""
    record = full_record()
    plain = " ".join(render(record).split())
    assert "Of its heads" not in plain
    numbers = {"low": 0.3, "high": 0.5, "tokens": 0.1, "prompts": 0.9}
    record["circuit"]["reads"] = [
        {"head": "layers.0.head.3", "part": "candidate", "mass": 0.4, **numbers},
        {"head": "layers.1.head.0", "part": None, "mass": 0.1, **numbers},
    ]
    page = " ".join(render(record).split())
    assert "1 head reads the candidate (most of all layers.0.head.3: 40 % of its attention" in page
    assert "95 % interval 30 % to 50 %" in page and "in 90 % of the prompts" in page
    assert "1 head looks at no part more" in page


@pytest.mark.parametrize(
    ("overlap", "chance", "stable"),
    [(0.86, None, True), (0.86, 0.35, True), (0.86, 0.82, False), (0.75, 0.1, False), (1.0, 1.0, False)],
)
def test_an_overlap_is_held_against_that_of_random_circuits(overlap, chance, stable) -> None:
    """Nine of ten parts overlap by .82 whatever chose them."""
    record = full_record()
    record["circuit"] |= {"jaccard": overlap, "jaccard_chance": chance}
    page = " ".join(render(record).split())
    assert ("the choice is stable." in page) is stable
    assert ("in part a matter of chance." in page) is not stable
    assert ("Random choices of as many overlap by" in page) is (chance is not None)


@pytest.mark.parametrize("fixed", [None, 0, 240])
def test_parts_that_no_request_can_change_are_not_hidden(fixed) -> None:
    """`40 of 60` would make a model of 300 parts look small."""
    record = full_record()
    record["circuit"]["n_fixed"] = fixed
    page = " ".join(render(record).split())
    assert ("240 further parts hold no trained weight" in page) is bool(fixed)
