"""Sentences of the report that depend on a method's settings."""

from __future__ import annotations

import pytest
from made_records import full_record

from curerec.reports.html import render
from curerec.reports.schema import as_record
from curerec.reports.verdicts import verdict


@pytest.mark.parametrize("method", ["cure", "npo"])
def test_what_was_taken_back_and_what_became_of_wavering_parts(method: str) -> None:
    """In words, where the settings say so; another method's record says nothing of cure's settings."""
    record = full_record() | {"method": method}
    record["metrics"] = {"original": {}, method: {}}
    record["residual"] = {}
    settings = {"kept": {"forget": 0.6, "retain": 1.0, "shared": 0.5}, "uncertain": "leading"}
    page = " ".join(render(record | {"config": {"cure": settings}}).split())  # also no-break spaces
    taken = "forget-specific parts kept 60 % and task-shared parts kept 50 % of it"
    assert (taken in page) is (method == "cure")
    assert ("that all data together put them in" in page) is (method == "cure")
    for broken in ({"kept": "all"}, {"kept": {"forget": "0.5"}}, "none", {"kept": {"forget": None}}):
        assert "was taken back" not in render(record | {"config": {"cure": broken}})


@pytest.mark.parametrize("method", ["cure", "random_modules", "npo"])
def test_which_weights_were_free_to_move(method: str) -> None:
    """The share that was asked for, and how they were chosen; nothing where whole units move."""
    record = full_record() | {"method": method}
    record["metrics"], record["residual"] = {"original": {}, method: {}}, {}
    page = " ".join(render(record | {"config": {"cure": {"saliency": 0.2}}}).split())
    assert ("at most 20 % of all weights" in page) is (method != "npo")
    assert ("on which the deleted data pull hardest" in page) is (method == "cure")
    assert ("drawn at random were free to move" in page) is (method == "random_modules")
    for settings in ({}, {"saliency": None}, {"saliency": "much"}):
        assert "free to move" not in render(record | {"config": {"cure": settings}})


@pytest.mark.parametrize("method", ["cure", "random_modules", "npo"])
def test_which_weights_were_taken_back(method: str) -> None:
    """Their share and how they were chosen, where anything was taken back."""
    record = full_record() | {"method": method}
    record["metrics"], record["residual"] = {"original": {}, method: {}}, {}
    settings = {"kept": {"forget": 0.2, "shared": 0.2}, "rolled_back": 0.2}
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert ("were taken back, at most 20 % of all." in page) is (method != "npo")
    assert ("the deleted data are remembered most" in page) is (method == "cure")
    record["update"]["depth"] = 0.5  # the looks asked for half of the way to the 20 % that may be kept
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert ("forget-specific parts kept 60 % and task-shared parts kept 60 % of it" in page) is (
        method != "npo"
    )
    assert "had written there" not in page
    record["update"] |= {"written": 0.25, "depth": 1.2}  # a quarter of the way is another one
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert ("forget-specific parts kept 28 % and task-shared parts kept 28 % of it" in page) is (
        method != "npo"
    )
    assert ("In as many weights 30 % of what the deleted data" in page) is (method != "npo")
    record["update"]["written"] = None
    record["update"]["depth"] = None
    record["update"]["rolled_back"] = 0.05  # a small request's, whose settings say .2 for others
    page = " ".join(render(record | {"config": {"cure": settings}}).split())
    assert ("were taken back, at most 5 % of all." in page) is (method != "npo")
    record["update"]["rolled_back"] = None
    for other in (
        {"rolled_back": 0.2},
        {**settings, "rolled_back": None},
        {**settings, "rolled_back": "much"},
    ):
        assert "only single weights" not in render(record | {"config": {"cure": other}})


@pytest.mark.parametrize(
    ("count", "said"),
    [(5, "5 words that only deleted data showed were"), (1, "One word that only deleted data showed was")],
)
def test_words_that_only_deleted_data_showed(count: int, said: str) -> None:
    """How many went back; nothing where there were none, or it was not asked for."""
    record = full_record()
    record["update"]["unseen_tokens"] = count
    page = " ".join(render(record).split())
    assert f"{said} put back to where the model had them" in page
    assert "Left exactly as it was, but for the words above." in page
    for none in (0, None):
        record["update"]["unseen_tokens"] = none
        assert "only deleted data showed" not in render(record)


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


def test_what_was_not_judged_names_the_checks_that_could_not_be_decided():
    """Also where models were retrained: the checks need none, so the lack of one is never the reason."""
    record = full_record()
    record["verdict"] = {
        "verified": None,
        "checks": [
            {"name": "utility", "passed": True, "value": 0.0, "limit": 0.1, "text": "As good."},
            {"name": "deleted_answers", "passed": None, "value": 0.0, "limit": 0.1, "text": "Too little."},
        ],
    }
    state, _, sentence = verdict(as_record(record))
    assert state == "open" and "check could not be decided (deleted answers)" in sentence
    assert "retrained" not in sentence


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
