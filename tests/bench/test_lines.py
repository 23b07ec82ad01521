"""Lines that were written whole survive; what a kill tore does not count, and is cut off by the next."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_bench import made_place, made_rows, table_recipe

from curerec.bench.lines import append_line, read_lines
from curerec.bench.run import run
from curerec.bench.summary import summarise
from curerec.errors import DataError

ROWS = [{"a": 1, "text": "x" * 70_000}, {"a": 2, "text": "ü\n"}, {"a": 3}]


def test_what_was_appended_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_lines(path) == []
    for row in ROWS:
        append_line(path, row)
    assert read_lines(path) == ROWS


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 70_200))
def test_a_file_cut_anywhere_holds_the_whole_lines_before_and_takes_new_ones(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    for row in ROWS:
        append_line(path, row)
    content = path.read_bytes()
    kept = content[: min(cut, len(content))]
    path.write_bytes(kept)
    whole = kept.count(b"\n")
    assert read_lines(path) == ROWS[:whole]
    append_line(path, {"a": 9})
    assert read_lines(path) == [*ROWS[:whole], {"a": 9}]


def test_a_strange_file_is_refused_and_not_quoted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nuser 42\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2") as caught:
        read_lines(path)
    assert "42" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "trials.jsonl", "obstacles.jsonl"])
def test_an_object_that_is_no_line_of_a_benchmark_is_refused(name, tmp_path):
    out = tmp_path / "out"
    made_rows(out, table_recipe())
    append_line(out / name, {"user": 42})
    readers = {
        "table": lambda: summarise(out),
        "run": lambda: run(table_recipe(), out, places=made_place(tmp_path), minutes=1e-6),
    }
    # The table of a recipe without a search reads no trials, and a run begins its obstacles anew.
    for reader in {"trials.jsonl": ["run"], "obstacles.jsonl": ["table"]}.get(name, readers):
        with pytest.raises(DataError, match=rf"{name}, line \d+: has no ") as caught:
            readers[reader]()
        assert "42" not in str(caught.value)


def test_values_that_json_has_no_form_for_become_null(tmp_path):
    append_line(tmp_path / "rows.jsonl", {"a": float("nan")})
    assert read_lines(tmp_path / "rows.jsonl") == [{"a": None}]
