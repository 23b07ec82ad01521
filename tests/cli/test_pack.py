"""Packed ratings give the command what the ratings themselves give it."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from curerec.data.readers import read
from curerec.opened import open_recommender
from curerec.recommender import storage
from made_commands import PRIVATE, curerec, refused, untouched


@pytest.fixture(scope="module")
def packed(made_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "ratings"
    return out, curerec("pack", "--data", made_path.data, "--out", out)


def test_it_says_what_it_packed(packed, made_path):
    out, result = packed
    data = read(made_path.data)
    assert result.code == 0 and result.err.startswith("pack: ") and len(result.err.splitlines()) == 1
    assert not PRIVATE.search(result.out)
    assert (
        result.out == f"{out}: {len(data):,} ratings of {len(data.items)} items by {len(data.users)} users\n"
    )


@pytest.mark.slow
def test_a_recommender_takes_either(packed, made_path, tmp_path):
    out, _ = packed
    trained = tmp_path / "trained"
    made = curerec("train", "--data", out, "--recipe", made_path.recipe, "--out", trained, "--no-prepare")
    assert made.code == 0, made
    card, known = storage.read_card(trained), storage.read_card(made_path.full)
    assert card["data"] == known["data"] and card["weights_sha256"] == known["weights_sha256"]
    asked = ("--recommender", made_path.full, "--request", made_path.request)
    done = curerec("unlearn", *asked, "--data", out, "--out", tmp_path / "new")
    assert done.code in (0, 1), done
    ours, theirs = (open_recommender(made_path.full, read(data)) for data in (out, made_path.data))
    for part in ("train", "control", "valid", "test"):
        a, b = getattr(ours.split, part), getattr(theirs.split, part)
        np.testing.assert_array_equal(a.target, b.target)
        np.testing.assert_array_equal(a.history, b.history)
    np.testing.assert_array_equal(
        ours.answered.logits, theirs.answered.logits
    )  # they are of the same prompts


def test_parquet_of_parts(packed, made_path, tmp_path):
    data, folder = read(made_path.data), tmp_path / "in"
    (folder / "ratings.parquet").mkdir(parents=True)
    for k in range(3):
        pq.write_table(data.ratings.slice(k * 500, 500), folder / "ratings.parquet" / f"{k}.parquet")
    rest = data.ratings.slice(1500)
    pq.write_table(rest, folder / "ratings.parquet" / "3.parquet")
    pq.write_table(data.titles, tmp_path / "names.parquet")
    refused(curerec("pack", "--data", folder, "--out", tmp_path / "out"), "no titles file")
    done = curerec(
        "pack", "--data", folder, "--titles", tmp_path / "names.parquet", "--out", tmp_path / "out"
    )
    assert done.code == 0, done
    assert read(tmp_path / "out").fingerprint == data.fingerprint


def test_titles_are_not_taken_from_elsewhere_where_there_are_own_ones(packed, made_path, tmp_path):
    out, _ = packed
    titles = next(made_path.data.glob("titles.*"), None) or next(made_path.data.glob("*item*"))
    for data in (out, "ml-100k"):
        asked = ("pack", "--data", data, "--titles", titles, "--out", tmp_path / "new")
        refused(curerec(*asked), "Leave titles (--titles) out")
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_not_replaced(made_path, packed, tmp_path):
    out, _ = packed
    with untouched(made_path.data), untouched(out):
        refused(curerec("pack", "--data", made_path.data, "--out", made_path.data))
        refused(curerec("pack", "--data", out, "--out", out), "holds what the command is to read")
        refused(curerec("pack", "--data", tmp_path / "nowhere", "--out", tmp_path / "new"), "no such file")
    assert not (tmp_path / "new").exists()


def test_columns_may_lie_beside_the_ratings(made_path, tmp_path):
    shutil.copytree(made_path.data, tmp_path / "data")
    assert curerec("pack", "--data", tmp_path / "data", "--out", tmp_path / "data" / "packed").code == 0
    assert read(tmp_path / "data").fingerprint == read(tmp_path / "data" / "packed").fingerprint
