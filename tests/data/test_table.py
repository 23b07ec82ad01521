"""The canonical table: order, checks, fingerprint."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curerec.data import columns as module
from curerec.data.columns import Origin
from curerec.data.forget import deleted_rows
from curerec.data.table import interactions
from curerec.errors import DataError
from curerec.interactions import digest_of_titles
from curerec.records import ForgetRequest

TITLES = {"1": "One", "2": "Two", "10": "Ten"}


def build(users, items, ratings, times=None, titles=TITLES, **options):
    return interactions(users, items, ratings, times, titles, name="made", source="test", **options)


def columns(data):
    return [data.ratings[name].to_pylist() for name in ("user", "item", "rating", "time")]


def test_integer_ids_sort_as_integers():
    data = build(["10", "9", "9"], ["1", "10", "2"], [1, 2, 3], [5, 7, 7])
    assert columns(data) == [["9", "9", "10"], ["2", "10", "1"], [3.0, 2.0, 1.0], [7, 7, 5]]
    assert data.titles["item"].to_pylist() == ["1", "2", "10"]
    ids = pa.dictionary(pa.int32(), pa.string())
    assert data.ratings.schema.types == [ids, ids, pa.float64(), pa.int64()]


def test_one_text_id_makes_the_column_sort_as_text():
    assert columns(build(["10", "9", "x"], ["1", "1", "1"], [1, 2, 3], [0, 0, 0]))[0] == ["10", "9", "x"]


def test_equal_integers_and_huge_ones_have_an_order():
    users = ["007", "7", "9" * 5000]
    assert columns(build(users, ["1"] * 3, [1, 2, 3], [0, 0, 0]))[0] == users


def test_without_times_the_row_order_inside_a_user_counts():
    data = build(["b", "a", "b", "a"], ["1", "2", "10", "1"], [1, 2, 3, 4])
    assert columns(data) == [["a", "a", "b", "b"], ["2", "1", "1", "10"], [2.0, 4.0, 1.0, 3.0], [0, 1, 0, 1]]


@pytest.mark.parametrize(
    "times",
    [
        ["30", " 10", "20"],
        [30.0, 10.0, 20.0],
        np.array([30, 10, 20], dtype=np.int32),
        ["3e1", "10.0", "20"],
        pa.array([30, 10, 20], pa.timestamp("s")),
        pa.array([datetime.datetime(1970, 1, 1, second=s) for s in (30, 10, 20)], pa.timestamp("us")),
    ],
)
def test_times_of_any_type(times):
    assert columns(build(["a"] * 3, ["1", "2", "10"], ["4", "4.0", "4e0"], times))[3] == [10, 20, 30]


def test_ids_of_any_type():
    want = columns(build(["1", "2"], ["1", "2"], [1, 2], [0, 0]))
    for users in ([1, 2], [1.0, 2.0], [" 1", "2 "], [1, "2"], pa.array(["1", "2"]).dictionary_encode()):
        assert columns(build(users, ["1", "2"], [1, 2], [0, 0])) == want


class Gap:
    """pandas.NA, which is equal to nothing and says neither yes nor no."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise TypeError

    def __str__(self):
        return "<NA>"

    __hash__ = None


NAN = float("nan")


@pytest.mark.parametrize(
    "gap", [NAN, np.float32("nan"), np.datetime64("NaT"), decimal.Decimal("nan"), Gap(), None]
)
def test_a_gap_among_objects_is_no_id_and_no_title(gap):
    """As in columns of pandas: text would make a user or a film of that name of it."""
    for values in (["a", gap, "b"], np.array(["a", gap, "b"], object)):
        with pytest.raises(DataError, match="row 2: user id is missing"):
            build(values, ["1", "2", "1"], [1, 2, 3])
        with pytest.raises(DataError, match="row 2: item id is missing"):
            build(["a", "b", "c"], values, [1, 2, 3], titles={"a": "A", "b": "B", "nan": "C", "<NA>": "D"})
    with pytest.raises(DataError, match="row 2: title is missing"):
        build(["a"], ["1"], [1], titles={"1": "One", "2": gap})
    assert build(["nan", "NA"], ["1", "1"], [1, 2]).users.tolist() == ["NA", "nan"]  # as somebody wrote it


def test_whole_floats_in_a_column_of_several_types_are_integers():
    data = build(["a", 7.0, 7, np.float32(8)], ["1", "1", "2", "1"], [1, 2, 3, 4])
    assert columns(data)[0] == ["7", "7", "8", "a"]
    assert build(["a", 7.5, 2.0**60], ["1"] * 3, [1, 2, 3]).users.tolist() == [str(2.0**60), "7.5", "a"]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_more_text_than_an_array_holds_is_told(kind, monkeypatch):
    """2 GiB of it: arrow's own message names an offset."""
    part = pa.array(["user1", "user2"]).cast(kind)
    users = pa.chunked_array([part, part])
    rows = (["1", "1", "2", "2"], [1, 2, 3, 4])
    assert len(build(users, *rows)) == 4
    monkeypatch.setattr(module, "TEXT_BYTES", 19)
    with pytest.raises(DataError, match=r"r.csv: a column holds more than 2 GiB of text.*curerec pack"):
        build(users, *rows, origin=Origin("r.csv"))


def test_bytes_that_are_no_text_are_told():
    with pytest.raises(DataError, match=r"^r.csv: text is not UTF-8. Write it") as refused:
        build([b"\xff", b"a"], ["1", "1"], [1, 2], origin=Origin("r.csv"))
    assert refused.value.__cause__ is None


def test_an_id_is_one_however_its_letters_are_spelled():
    """Keyboards and file systems write an accent as a letter of its own, or do not."""
    rows = (["1", "1"], [5, 3], [0, 1], {"1": "One"})
    one, two = build(["Amélie", "bob"], *rows), build(["Ame\u0301lie", "bob"], *rows)
    assert one.fingerprint == two.fingerprint and one.users.tolist() == ["Amélie", "bob"]
    with pytest.raises(DataError, match="repeats the user and item of row 1"):
        build(["Amélie", "Ame\u0301lie"], *rows)
    for spelled in ("Amélie", "Ame\u0301lie"):
        request = ForgetRequest("users", (spelled,))
        assert deleted_rows(one, request).tolist() == [True, False]
        old = one.ratings.set_column(0, "user", pa.array(["Ame\u0301lie", "bob"]).dictionary_encode())
        # As it was read before ids were of one form.
        assert deleted_rows(replace(one, ratings=old), request).tolist() == [True, False]


def test_whole_catalogue_is_kept():
    data = build(["a"], ["2"], [5], [0])
    assert data.items.tolist() == ["1", "2", "10"] and data.item_code.tolist() == [1]


BAD = {
    "rating is no number": dict(ratings=[5, 5, "good"]),
    "rating is not finite": dict(ratings=[5, 5, float("nan")]),
    "rating is outside 0 to 5": dict(ratings=[5, 5, 5.5]),
    "rating is missing": dict(ratings=[5, 5, None]),
    "user id is empty": dict(users=["u1", "u1", " "]),
    "user id is missing": dict(users=["u1", "u1", None]),
    "user id is no whole number": dict(users=[1.0, 1.0, float("inf")]),
    "item id holds a control character": dict(items=["1", "2", "a\tb"]),
    "time is no whole number": dict(times=[1.0, 2.0, 2.5]),
    "time is no number": dict(times=["1", "2", "soon"]),
    "time is missing": dict(times=[1, 2, None]),
    "rates an item that has no title in t.csv": dict(items=["1", "2", "i99"]),
    "repeats the user and item of row 8": dict(items=["1", "2", "1"]),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_row_is_named(what):
    rows = (
        dict(users=["u1", "u1", "u1"], items=["1", "2", "10"], ratings=[5, 5, 5], times=[1, 2, 3]) | BAD[what]
    )
    with pytest.raises(DataError) as caught:
        build(**rows, origin=Origin("r.csv", 8), titles_origin=Origin("t.csv"))
    assert str(caught.value).startswith(f"r.csv, row 10: {what}. ")
    assert not any(secret in str(caught.value) for secret in ("u1", "i99", "soon", "good"))


@pytest.mark.parametrize(
    ("titles", "what"),
    [
        ({"1": "One", "2": ""}, "t.csv, row 3: title is empty"),
        ({"1": "One", "2": " \t\n"}, "t.csv, row 3: title is empty"),
        ({"1": "One", "2": None}, "t.csv, row 3: title is missing"),
        ({"1": 1, "2": 2}, "t.csv: title column holds no text"),
        ({}, "t.csv: holds no title"),
        (
            pa.table({"item": ["1", "2", "1"], "title": ["a", "b", "c"]}),
            "t.csv, row 4: repeats the item of row 2",
        ),
    ],
)
def test_a_bad_title_is_named(titles, what):
    with pytest.raises(DataError, match=what):
        build(["a"], ["1"], [5], titles=titles, titles_origin=Origin("t.csv", 2))


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (([], [], [], []), "holds no interaction"),
        ((["a"], ["1", "2"], [5], [0]), "columns differ in length"),
        ((["a"], ["1"], [[5]], [0]), "rating column holds no numbers"),
        ((["a"], [["1"]], [5], [0]), "item id column holds neither text nor whole numbers"),
        ((["a"], ["1"], [5], pa.array([2**63], pa.uint64())), "time column holds no whole numbers"),
        ((["a"], ["1"], [5], [2**64]), "interactions, row 1: time is no whole number"),
    ],
)
def test_a_bad_column_is_named(rows, what):
    with pytest.raises(DataError, match=what):
        build(*rows)


def test_last_keeps_the_latest_of_a_pair():
    rows = (["a"] * 4, ["1", "2", "1", "1"], [1, 2, 3, 4], [9, 1, 5, 9])
    assert columns(build(*rows, duplicates="last"))[2:] == [[2.0, 4.0], [1, 9]]


def test_fingerprint_is_sha256_of_the_lines():
    data = build(["b", "a"], ["1", "2"], [3.5, -0.0], [7, 8])
    assert data.fingerprint == hashlib.sha256(b"a\t2\t0.0\t8\nb\t1\t3.5\t7\n").hexdigest()


pairs = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40, unique=True)


@pytest.mark.slow
@given(pairs=pairs, shuffle=st.randoms(use_true_random=False), as_text=st.booleans())
def test_row_order_does_not_change_the_table(pairs, shuffle, as_text):
    titles = {str(i): f"Title {i}" for i in range(13)}
    rows = [(u, i, (u * 7 + i) % 6, (u + i) % 5) for u, i in pairs]
    want = build(*zip(*rows, strict=True), titles=titles)
    shuffle.shuffle(rows)
    mixed = dict(shuffle.sample(sorted(titles.items()), len(titles)))
    users, items, ratings, times = zip(*rows, strict=True)
    if as_text:
        users, items, ratings, times = (list(map(str, c)) for c in (users, items, ratings, times))
    got = build(users, items, ratings, times, titles=mixed)
    assert got.ratings.equals(want.ratings) and got.titles.equals(want.titles)
    assert got.fingerprint == want.fingerprint


@pytest.mark.slow
def test_a_million_rows_take_seconds():
    rng = np.random.default_rng(0)
    pair = rng.choice(6_000 * 3_700, 1_000_000, replace=False)
    start = time.process_time()
    titles = {str(i): f"Title {i}" for i in range(3_700)}
    data = build(pair // 3_700, pair % 3_700, rng.integers(1, 6, len(pair)), pair, titles=titles)
    assert len(data.fingerprint) == 64
    assert time.process_time() - start < 15  # 2 s on an idle core


def test_the_digest_of_titles_says_where_each_ends():
    """Of titles without a line end it is that of their lines, as committed rows have it."""
    catalogues = [["a", "b", "c"], ["a\nb", "c"], ["a", "b\nc"], ["a\nb\nc"], ["a", "b", "c\n"]]
    digests = [digest_of_titles(pa.table({"item": titles, "title": titles})) for titles in catalogues]
    assert len(set(digests)) == len(digests)
    assert digests[0] == hashlib.sha256(b"a\nb\nc").hexdigest()
