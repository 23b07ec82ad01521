"""Which rows a table is of, and which are left out and counted."""

from __future__ import annotations

import json

from made_bench import TABLED, WORTH, change_rows, line_of, made_rows, table_recipe

from curerec.bench.lines import read_lines
from curerec.bench.summary import summarise
from curerec.bench.table import text_table


def test_rows_of_other_settings_than_the_newest_are_left_out(tmp_path):
    """A search that was made again may have chosen otherwise, under one configuration."""
    made_rows(tmp_path, table_recipe(), worth=WORTH)

    def set_(row):
        if row["method"] == "npo":
            row["settings"] = {} if row["seed"] == 20 else {"lr": 0.002}

    change_rows(tmp_path, set_)
    summary = summarise(tmp_path)
    assert line_of(summary, "npo")["seeds"] == [21, 22] and summary["left_out"] == 1


def test_the_newest_settings_are_those_of_the_last_line(tmp_path):
    """A row that is made anew comes last in the file, whatever place its first one had."""
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    lines = read_lines(tmp_path / "rows.jsonl")
    npo = [row for row in lines if row["method"] == "npo"]
    first = [{**row, "settings": {}} if row in npo else row for row in lines]
    anew = [{**row, "settings": {"lr": 0.002}} for row in npo if row["seed"] < 22]  # then it was killed
    with (tmp_path / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in first + anew)
    summary = summarise(tmp_path)
    assert line_of(summary, "npo")["seeds"] == [20, 21] and summary["left_out"] == 1


def test_rows_of_another_configuration_are_left_out_and_counted(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    made_rows(tmp_path, table_recipe(retrains=3), worth=WORTH)
    summary = summarise(tmp_path)
    # The references' rows too: what they are compared with is part of their configuration.
    assert summary["left_out"] == 3 * (len(TABLED) + 4)  # base, original, two retrains
    assert line_of(summary, "npo")["values"]["residual"]["n"] == 3
    assert "left out" in text_table(summary)


def test_seeds_that_the_recipe_does_not_name_any_more_are_left_out(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    (tmp_path / "bench.json").write_text(table_recipe(seeds=[21, 22]).model_dump_json())
    summary = summarise(tmp_path)
    assert summary["left_out"] == len(TABLED) + 4
    assert {tuple(x["seeds"]) for x in summary["blocks"][0]["lines"]} == {(21, 22)}


def test_rows_of_other_data_are_left_out(tmp_path):
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    lines = read_lines(tmp_path / "rows.jsonl")
    with (tmp_path / "rows.jsonl").open("w") as file:
        for row in lines:  # the ratings changed before the last seed was run
            of = "old" if row["seed"] < 22 else "new"
            file.write(json.dumps({**row, "fingerprint": of}) + "\n")
    summary = summarise(tmp_path)
    assert summary["left_out"] == 2 * (len(TABLED) + 4)
    assert line_of(summary, "npo")["seeds"] == [22]


def test_rows_of_other_titles_are_left_out(tmp_path):
    """They are in every prompt, and the fingerprint of the ratings stays."""
    made_rows(tmp_path, table_recipe(), worth=WORTH)

    def named(row):
        row.update(fingerprint="same", titles="old" if row["seed"] < 22 else "new")
        if row["seed"] == 21:
            del row["titles"]  # of before, when titles were not named

    change_rows(tmp_path, named)
    summary = summarise(tmp_path)
    assert summary["left_out"] == len(TABLED) + 4 and summary["data"] == {"made": "same"}
    assert line_of(summary, "npo")["seeds"] == [21, 22]


def test_failures_on_other_data_are_left_out(tmp_path):
    made_rows(tmp_path, table_recipe(), worth={**WORTH, "scrub": None})
    change_rows(tmp_path, lambda row: row.update(fingerprint="old" if row["seed"] < 22 else "new"))
    assert [one["seed"] for one in line_of(summarise(tmp_path), "scrub")["failures"]] == [22]


def test_a_row_that_was_replaced_says_nothing_of_which_data_is_the_newest(tmp_path):
    """Rows that are made anew come last in the file, whatever place they had before."""
    made_rows(tmp_path, table_recipe(), worth=WORTH)
    lines = read_lines(tmp_path / "rows.jsonl")
    anew = [{**row, "fingerprint": "new"} for row in lines if row["seed"] < 22]  # then it was killed
    with (tmp_path / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in [{**r, "fingerprint": "old"} for r in lines] + anew)
    summary = summarise(tmp_path)
    assert summary["data"] == {"made": "new"} and 22 not in line_of(summary, "npo")["seeds"]


def test_rows_that_were_measured_with_other_retrains_are_left_out(tmp_path):
    """Models that were trained anew are others: one block would hold cells of two sets of retrains."""
    asks = [{"share": 0.1, "methods": TABLED}, {"share": 0.1, "parts": 5, "methods": ["npo"]}]
    made_rows(tmp_path, table_recipe(requests=asks), worth=WORTH)

    def other(row):
        if row["seed"] == 21 and row["method"] == "npo":
            row["yardstick"] = "of-before.safetensors"
        if row["seed"] == 22 and row["method"] == "cure":  # it does not say what it was measured with
            del row["yardstick"]

    change_rows(tmp_path, other)
    summary = summarise(tmp_path)
    assert summary["left_out"] == 2
    assert [line_of(summary, "npo", block)["seeds"] for block in (0, 1)] == [[20, 22]] * 2
    assert line_of(summary, "cure")["seeds"] == [20, 21, 22]
