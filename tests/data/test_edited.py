"""A table less some rows, or with new ones, a chunk at a time, is the one made of those rows at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curerec.data.edited import NEW, adding, keeping, whole
from curerec.data.packed import open_packed, pack_table, write_packed
from curerec.data.table import interactions
from curerec.errors import DataError
from curerec.interactions import Interactions
from made_catalogue import PLAIN, made_catalogue

DATA = made_catalogue()


def of_rows(rows: list[tuple[str, str, float, int]], titles: dict[str, str]) -> Interactions:
    user, item, rating, time = (list(column) for column in zip(*rows, strict=True))
    return interactions(user, item, rating, time, titles, name="made", source="test")


def rows_of(data: Interactions) -> list[tuple[str, str, float, int]]:
    columns = data.ratings.cast(PLAIN).to_pydict()
    return list(zip(*(columns[name] for name in PLAIN.names), strict=True))


def same(a: Interactions, b: Interactions) -> None:
    assert rows_of(a) == rows_of(b) and a.titles.equals(b.titles)
    assert a.users.tolist() == b.users.tolist() and a.fingerprint == b.fingerprint
    np.testing.assert_array_equal(a.first, b.first)
    np.testing.assert_array_equal(a.item_code, b.item_code)


# Numbers, and text that sorts between them once one is there; times that tie.
IDS = st.sampled_from(["1", "2", "10", "007", "7", "b", "a"])
ROWS = st.dictionaries(
    st.tuples(IDS, IDS), st.tuples(st.sampled_from([1.0, 4.5]), st.integers(0, 2)), min_size=2
)


@pytest.mark.slow
@given(rows=ROWS, data=st.data())
def test_rows_that_come_in_are_sorted_in_among_the_others(rows, data):
    flat = [(u, i, *rest) for (u, i), rest in rows.items()]
    cut = data.draw(st.integers(1, len(flat) - 1))
    titles = {i: f"Title {i}" for _, i, *_ in flat} | {"99": "never rated"}
    own = {i: f"Title {i}" for _, i, *_ in flat[:cut]} | {"99": "never rated"}
    other = {i: f"Title {i}" if i not in own else "another title" for _, i, *_ in flat[cut:]}
    old, new = of_rows(flat[:cut], own), of_rows(flat[cut:], other)
    edited = adding(old, new, chunk=data.draw(st.integers(1, 4)))
    made = edited.in_memory()
    same(made, of_rows(flat, titles))
    rows_before, numbers = rows_of(old), np.concatenate([part["row"] for part in edited.chunks()])
    for row, number in zip(rows_of(made), numbers.tolist(), strict=True):
        assert number == (rows_before.index(row) if row in rows_before else NEW)


def test_a_pair_that_is_there_does_not_come_in_again():
    again = keeping(DATA, np.arange(len(DATA)) < 3).in_memory()
    with pytest.raises(DataError, match="has rated already"):
        adding(DATA, again)


@given(seed=st.integers(0, 1000), share=st.floats(0.05, 1.0), chunk=st.integers(1, 500))
def test_rows_that_stay_are_the_table_of_them_alone(seed, share, chunk):
    keep = np.random.default_rng(seed).random(len(DATA)) < share
    keep[0] = True
    left = keeping(DATA, keep, chunk=chunk)
    made = left.in_memory()
    titles = dict(zip(DATA.titles["item"].to_pylist(), DATA.titles["title"].to_pylist(), strict=True))
    same(made, of_rows([row for row, kept in zip(rows_of(DATA), keep, strict=True) if kept], titles))
    assert DATA.fingerprint_of(keep) == made.fingerprint
    assert left.n == len(made) == keep.sum()
    np.testing.assert_array_equal(np.concatenate([c["row"] for c in left.chunks()]), np.flatnonzero(keep))
    gone = set(DATA.users) - set(made.users)
    assert not gone & set(made.ratings["user"].chunk(0).dictionary.to_pylist())  # nothing of them is left


def test_titles_go_with_their_items():
    gone = np.isin(DATA.item_code, [0, 3])
    titles = DATA.titles.filter(pa.array(~np.isin(np.arange(len(DATA.items)), [0, 3])))
    made = keeping(DATA, ~gone, titles).in_memory()
    assert made.titles.equals(titles)
    assert [row[1] for row in rows_of(made)] == [row[1] for row in np.array(rows_of(DATA))[~gone].tolist()]
    with pytest.raises(ValueError, match="needs the title"):
        keeping(DATA, np.ones(len(DATA), bool), titles).in_memory()


def test_what_is_written_a_chunk_at_a_time_is_the_same(tmp_path):
    mapped = pack_table(DATA, tmp_path / "old", chunk=37)
    keep = np.random.default_rng(1).random(len(DATA)) < 0.7
    edited = keeping(mapped, keep, chunk=50)
    stage = tmp_path / "new"
    stage.mkdir()
    write_packed(stage, edited, {"number": (np.int64, lambda rows: rows["row"])}, chunk=41)
    same(open_packed(stage), edited.in_memory())
    np.testing.assert_array_equal(np.load(stage / "number.npy"), np.flatnonzero(keep))
    assert (
        open_packed(stage).rows_of_items(np.array([2])).tolist()
        == np.flatnonzero(open_packed(stage).item_code == 2).tolist()
    )
    same(whole(DATA, chunk=11).in_memory(), DATA)
