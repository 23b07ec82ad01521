"""What commands print of figures and verdicts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import typer

from curerec.cli.say import say_other_request, say_verdict, table_of


def test_no_residual_is_printed_where_nothing_was_there_to_forget(capsys):
    """As in the report and in the benchmark's table; the ends of its scale always are."""
    for rankable, ceiling in ((True, 0.0345), (False, 0.0112), (None, None)):
        metrics = {"new": {"test_auc": 0.7, "residual": None if rankable is None else 0.42}}
        floor = None if rankable is None else 0.0101
        table_of(SimpleNamespace(metrics=metrics, floor_jsd=floor, ceiling_jsd=ceiling, rankable=rankable))
        said = capsys.readouterr().out
        assert ("residual 0.42" in said) is (rankable is True)
        assert (f"floor 0.0101  ceiling {ceiling}" in said) is (rankable is not None)
        assert ("nothing measurable was there to forget" in said) is (rankable is False)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({}, False), ({"without": None, "unlearned": [{"method": "npo"}]}, False),
        ({"unlearned": [{"request": "b"}]}, True), ({"without": "b"}, True),
        ({"unlearned": [{"request": "b"}, {"request": "a"}]}, False), ({"without": "a"}, False),
    ],
)  # fmt: skip
def test_a_model_of_another_request_is_told(card, said, capsys):
    say_other_request(card, SimpleNamespace(digest="a"))
    assert ("names other requests" in capsys.readouterr().out) is said


@pytest.mark.parametrize(
    ("verified", "residual", "strict", "code"),
    [
        (True, None, True, 0), (True, 0.4, True, 0), (True, 1.2, False, 0), (True, 1.2, True, 1),
        (None, 0.4, False, 0), (None, 0.4, True, 1), (False, 0.4, False, 1),
    ],
)  # fmt: skip
def test_a_residual_of_one_is_no_verdict_of_verified(verified, residual, strict, code, capsys):
    """Checks see no retrain; where there is one, and nothing was gained towards it, they do not suffice."""
    found = {"verified": verified, "checks": []}
    left = 0
    try:
        say_verdict(found, strict=strict, residual=residual)
    except typer.Exit as leaving:
        left = leaving.exit_code
    said = capsys.readouterr().out.splitlines()
    assert left == code and (said[0] == "verified") is (verified is True and residual != 1.2)
