"""Every format: what it reads, and what it says of a file that is not what it should be."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curerec.data.readers import READERS, pack, read
from curerec.errors import DataError
from made_ratings import LAYOUTS, RATINGS, TITLES, fails, write_parquet

FORMATS = list(LAYOUTS)
TIMED = [name for name in FORMATS if LAYOUTS[name].timed]
LEGAL = {
    "itm77": "א" * 20 + " עברית ‮" + "ر" * 10,
    "itm78": "x" * 10_000,
    "itm79": "<|im_end|>\x07\x00 [INST] \x1b[31m user: ignore",
}


def test_every_reader_is_tested():
    assert list(READERS) == FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_reads(name, tmp_path):
    folder = LAYOUTS[name].write(tmp_path / "small")
    for path in (folder, folder / LAYOUTS[name].ratings):
        data = read(path)
        assert (len(data), list(data.users), data.source) == (5, ["usr901", "usr902"], "local file")
        assert dict(zip(*data.titles.to_pydict().values(), strict=True)) == TITLES
    assert read(folder).name == "small" and read(folder, name="other").name == "other"
    if LAYOUTS[name].timed:
        rows = zip(*data.ratings.to_pydict().values(), strict=True)
        assert list(rows) == sorted(RATINGS, key=lambda r: (r[0], r[3], r[1]))


def test_no_time_means_row_order(tmp_path):
    data = read(LAYOUTS["goodbooks"].write(tmp_path))
    assert data.ratings["item"].to_pylist() == ["itm77", "itm78", "itm77", "itm79", "itm78"]
    assert data.time.tolist() == [0, 1, 0, 1, 2]


#: Readers of files that may have no times, and how each may have them.
MAYBE_TIMED = {"goodbooks": ("time", "timestamp"), "recbole": ("timestamp", "time"), "plain": ("time",)}
ELSEWHERE = [
    "Time",
    "date",
    "ts",
    "unix_timestamp",
    "unixReviewTime",
    "rated_at",
    "Date Added",
    "event_time_",
]


def timed_under(folder, name, column):
    """Ratings of which the later rows are the earlier ones, their times under this name."""
    header = ("user", "item", "rating") if name == "parquet" else LAYOUTS[name].ratings_header[:3]
    rows = [(user, item, f"{rating:g}", str(time)) for user, item, rating, time in RATINGS]
    if name == "parquet":
        write_parquet(folder)
        pq.write_table(
            pa.table(dict(zip([*header, column], zip(*rows, strict=True), strict=True))),
            folder / "interactions.parquet",
        )
    else:
        layout = LAYOUTS[name]
        layout.put(layout.write(folder) / layout.ratings, layout.separator, (*header, column), rows)
    return folder


@pytest.mark.parametrize("name", [*MAYBE_TIMED, "parquet"])
def test_times_under_another_name_are_not_left_out_unsaid(name, tmp_path):
    """In a file that is sorted by item the order of the rows is no time."""
    known = MAYBE_TIMED.get(name, MAYBE_TIMED["plain"])
    for k, column in enumerate(known):
        data = read(timed_under(tmp_path / f"known{k}", name, column))
        assert data.time.tolist() == [10, 30, 20, 20, 40]
        assert data.ratings["item"].to_pylist()[:2] == ["itm78", "itm77"]
    for k, column in enumerate({*ELSEWHERE, "timestamp"} - set(known)):
        folder = timed_under(tmp_path / f"other{k}", name, column)
        text = fails(folder)
        assert "has a column of times under another name (column 4)" in text and f"Name it {known[0]}" in text
        if name == "parquet":
            with pytest.raises(DataError, match="under another name"):
                pack(folder, tmp_path / "out")


def test_what_is_no_time_of_a_rating_does_not_stand_in_the_way(tmp_path):
    names = [
        "release_date",
        "birth_date",
        "published_at",
        "runtime",
        "watch_time",
        "time_spent",
        "state",
        "at",
    ]
    names += ["estimate", "rating_count", "timezone", "events", "update", "year", "data"]
    for k, name in enumerate(names):
        assert len(read(timed_under(tmp_path / str(k), "plain", name))) == 5, name
    titles = tmp_path / "0" / "titles.csv"
    lines = zip(["date", "1", "2", "3"], titles.read_text().splitlines(), strict=True)
    titles.write_text("".join(f"{line},{more}\n" for more, line in lines))
    assert len(read(tmp_path / "0")) == 5


PAIRS = list(itertools.combinations([*FORMATS, "parquet"], 2))


def write_as(name, folder):
    return write_parquet(folder) if name == "parquet" else LAYOUTS[name].write(folder)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_folder_of_two_data_sets_is_not_read_as_the_first(one, other, tmp_path):
    """What lay there from before would be taken, and its users for those that are meant."""
    write_as(one, write_as(other, tmp_path))
    ratings = {
        name: (LAYOUTS["plain"] if name == "parquet" else LAYOUTS[name]).ratings for name in (one, other)
    }
    if "parquet" in ratings:
        ratings["parquet"] = "interactions.parquet"
    if len(set(ratings.values())) == 1:  # both call it ratings.csv, and one took the other's place
        return
    text = fails(tmp_path)
    assert "holds several ratings files" in text and all(file in text for file in ratings.values())
    for file in ratings.values():
        assert len(read(tmp_path / file)) == 5


def test_several_ratings_or_titles_of_one_format(tmp_path):
    layout = LAYOUTS["plain"]
    layout.write(tmp_path)
    (tmp_path / "ratings.csv").write_bytes((tmp_path / layout.ratings).read_bytes())
    assert "several ratings files (interactions.csv, ratings.csv)" in fails(tmp_path)
    (tmp_path / "items.csv").write_text("item,colour\nitm77,red\n")  # what else is known of them
    assert len(read(tmp_path / "ratings.csv")) == 5
    (tmp_path / "items.csv").write_text("item,title\nitm77,Other\n")
    text = fails(tmp_path / "ratings.csv")
    assert text.startswith("ratings.csv: several titles files beside it (titles.csv, items.csv). Keep one")
    assert len(read(tmp_path / "ratings.csv", titles=tmp_path / "titles.csv")) == 5
    write_parquet(tmp_path, titles=TITLES | {"itm77": "Of the parquet"})  # titles of the ratings' own ending
    assert read(tmp_path / "interactions.parquet").titles["title"][0].as_py() == "Of the parquet"


@pytest.mark.parametrize("name", FORMATS)
def test_files_that_are_published_with_the_ratings_are_no_other_ratings(name, tmp_path):
    folder = LAYOUTS[name].write(tmp_path)
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,x,1\n")
    (folder / "to_read.csv").write_text("user_id,book_id\n1,1\n")
    (folder / "ratings_sample.csv.gz").write_bytes(b"\x1f\x8b")
    for other in ("u1.base", "u.user", "small.user", "users.dat", "README", "curerec-fetch.json"):
        (folder / other).write_text("1\n")
    assert len(read(folder)) == 5


def test_parquet(tmp_path):
    want = read(LAYOUTS["plain"].write(tmp_path / "csv"))
    got = read(write_parquet(tmp_path / "parquet"))
    assert got.fingerprint == want.fingerprint and got.titles.equals(want.titles)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.permutations(RATINGS),
    name=st.sampled_from([*TIMED, "parquet"]),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_format_and_row_order_do_not_change_the_fingerprint(rows, name, end):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        want = read(LAYOUTS["plain"].write(path / "want")).fingerprint
        got = (write_parquet if name == "parquet" else LAYOUTS[name].write)(path / "got", rows)
        if name != "parquet":
            for file in got.iterdir():
                file.write_bytes(file.read_bytes().replace(b"\n", end))
        data = read(got)
        assert data.fingerprint == want and set(data.titles["title"].to_pylist()) == set(TITLES.values())


@pytest.mark.parametrize("name", [n for n in FORMATS if LAYOUTS[n].encoding == "utf-8"] + ["parquet"])
def test_strange_titles_are_kept(name, tmp_path):
    folder = (write_parquet if name == "parquet" else LAYOUTS[name].write)(tmp_path, RATINGS, LEGAL)
    assert set(read(folder).titles["title"].to_pylist()) == set(LEGAL.values())


def test_line_ends_in_quoted_titles_are_kept(tmp_path):
    titles = TITLES | {"itm78": 'A "" quoted\n::, line\r\nand , more'}
    data = read(LAYOUTS["movielens-csv"].write(tmp_path, RATINGS, titles))
    assert data.titles["title"][1].as_py() == titles["itm78"].replace('""', '"')


@pytest.mark.parametrize("name", ["movielens-100k", "movielens-dat"])
def test_latin1_and_utf8_titles(name, tmp_path):
    folder = LAYOUTS[name].write(tmp_path, RATINGS, TITLES | {"itm78": "Cité: d'été"})
    assert read(folder).titles["title"][1].as_py() == "Cité: d'été"
    file = folder / LAYOUTS[name].titles
    file.write_bytes(file.read_bytes().decode("latin-1").encode("utf-8"))
    assert read(folder).titles["title"][1].as_py() == "Cité: d'été"


def test_separator_inside_a_dat_title(tmp_path):
    data = read(LAYOUTS["movielens-dat"].write(tmp_path, RATINGS, TITLES | {"itm78": "A::B"}))
    assert data.titles["title"][1].as_py() == "A::B"


def test_recbole_year_only_where_it_is_one(tmp_path):
    folder = LAYOUTS["recbole"].write(tmp_path)
    (folder / "small.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\nitm77\tA\t1995\nitm78\tB\tunknown\nitm79\tC\t\n"
    )
    assert read(folder).titles["title"].to_pylist() == ["A (1995)", "B", "C"]


def test_titles_elsewhere_and_format_by_name(tmp_path):
    folder = LAYOUTS["movielens-100k"].write(tmp_path)
    ratings, titles = (
        (folder / "u.data").rename(tmp_path / "a.txt"),
        (folder / "u.item").rename(tmp_path / "b"),
    )
    assert len(read(ratings, format="movielens-100k", titles=titles)) == 5
    assert "curerec pack --titles file" in fails(ratings, format="movielens-100k").lower()
    assert "Known: movielens-100k" in fails(ratings, format="nonsense")


SHARED = Path(os.environ.get("CUREREC_DATA") or Path(__file__).parents[3] / "shared" / "data")
COUNTS = {
    "ml-100k": (100_000, 943, 1_682, 1_682),
    "ml-1m": (1_000_209, 6_040, 3_706, 3_883),
    "goodbooks-10k": (300_129, 2_671, 9_991, 10_000),
}


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data: set CUREREC_DATA")
@pytest.mark.parametrize("name", COUNTS)
def test_real_data(name):
    data = read(SHARED / name)
    assert (len(data), len(data.users), len(data.ratings["item"].unique()), len(data.items)) == COUNTS[name]
    if name == "ml-100k":
        from curerec.data.fetch import PUBLIC

        assert data.fingerprint == PUBLIC["ml-100k"].digest
        assert data.titles["title"][266].as_py() == "unknown"
