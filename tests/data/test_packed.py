"""What is packed on disk, a piece at a time, is the table that is read into memory at once."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curerec
from curerec.data import packed, packing
from curerec.data.forget import apply_request, deleted_rows
from curerec.data.graph import liked_graph, personalised_pagerank
from curerec.data.packed import open_packed, pack_table
from curerec.data.push import liked_graph_on_disk, push
from curerec.data.readers import pack, read
from curerec.data.splits import per_user_roles, per_user_split
from curerec.data.table import interactions
from curerec.errors import CurerecError, DataError, RequestError
from curerec.recipe import SplitConfig
from curerec.records import ForgetRequest
from curerec.splitting import split_of
from made_catalogue import PLAIN, made_catalogue

DATA = made_catalogue()
PARTS = ("train", "control", "valid", "test")


def written(folder, rows=None, titles=None, *, parts: int = 2):
    """Ratings in any order, in some parts, and their titles."""
    rows = DATA.ratings.cast(PLAIN) if rows is None else rows
    rows = rows.take(np.random.default_rng(0).permutation(len(rows)))
    (folder / "interactions.parquet").mkdir(parents=True)
    step = -(-len(rows) // parts)
    for k in range(parts):
        part = rows.slice(k * step, step)
        pq.write_table(part, folder / "interactions.parquet" / f"part-{k}.parquet", row_group_size=50)
    pq.write_table(DATA.titles if titles is None else titles, folder / "titles.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("ratings") / "made")


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "out"
    packing.pack(folder / "interactions.parquet", DATA.titles, out, name="made", chunk=37, bucket=60)
    return out


@pytest.fixture(scope="module")
def made(place):
    return open_packed(place)


def same(a, b) -> None:
    assert a.ratings.cast(PLAIN).equals(b.ratings.cast(PLAIN)) and a.titles.equals(b.titles)
    assert a.fingerprint == b.fingerprint and a.users.tolist() == b.users.tolist()
    for name in ("user_code", "item_code", "rating", "time", "first"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_the_table_is_the_one_in_memory(folder, made, tmp_path):
    same(made, DATA)
    assert made.fingerprint == type(made)(made.ratings, made.titles, "", "").fingerprint
    same(read(folder), DATA)
    same(pack(folder, tmp_path / "by_reader"), DATA)
    same(pack_table(DATA, tmp_path / "from_memory"), DATA)
    same(pack(tmp_path / "by_reader", tmp_path / "again"), DATA)
    same(curerec.load(tmp_path / "again"), DATA)
    assert read(tmp_path / "again").name == "made"


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.binary(), pa.binary_view()])
def test_texts_of_any_type(folder, made, tmp_path, kind):
    """Other writers than Spark leave views, in which pyarrow does not look things up."""
    (tmp_path / "in").mkdir()
    rows = pq.read_table(folder / "interactions.parquet")
    titles = pq.read_table(folder / "titles.parquet")
    for name in ("user", "item"):
        text = rows[name].cast(pa.string()).cast(kind)
        rows = rows.set_column(rows.column_names.index(name), name, text)
    for k, name in enumerate(("item", "title")):
        titles = titles.set_column(k, name, titles[name].cast(pa.string()).cast(kind))
    pq.write_table(rows, tmp_path / "in" / "interactions.parquet")
    pq.write_table(titles, tmp_path / "in" / "titles.parquet")
    for data in (pack(tmp_path / "in", tmp_path / "out"), read(tmp_path / "in")):
        assert data.fingerprint == made.fingerprint and data.titles.equals(made.titles)


@pytest.mark.parametrize("ids", ["integers", "text", "blanks", "forms"])
@pytest.mark.parametrize("timed", [True, False])
def test_ids_and_times_of_any_kind(tmp_path, ids, timed):
    rng = np.random.default_rng(3)
    pairs = [(u, i) for u in (7, 10, 100, 9) for i in rng.choice(40, 12, replace=False).tolist()]
    kinds = {"integers": int, "text": lambda v: f"x{v}", "blanks": lambda v: f" {v}" if v % 2 else f"{v} "}
    kinds["forms"] = lambda v: (
        f"{rng.choice(['é', 'e' + chr(0x301)])}{v}"
    )  # one sign, or a letter and its accent
    order = rng.permutation(len(pairs))
    values = {
        "user": [kinds[ids](pairs[k][0]) for k in order],
        "item": [kinds[ids](pairs[k][1]) for k in order],
        "rating": rng.choice([1.0, 3.7, 4.0, 5.0], len(pairs)).tolist(),
    }
    if timed:
        values["time"] = rng.integers(0, 4, len(pairs)).tolist()
    titles = pa.table(
        {"item": [str(kinds[ids](i)) for i in range(40)], "title": [f"T{i}" for i in range(40)]}
    )
    if ids == "integers":  # a title whose id is no number orders the catalogue as text, and not the ratings
        more = pa.table({"item": ["none"], "title": ["N"]})
        titles = pa.concat_tables([titles, more])
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table(values), folder / "interactions.parquet", row_group_size=7)
    pq.write_table(titles, folder / "titles.parquet")
    out = packing.pack(folder / "interactions.parquet", titles, tmp_path / "out", name="x", chunk=5, bucket=9)
    same(out, read(folder))


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
@pytest.mark.parametrize("fraction", [0, 5])
def test_time_stamps_are_of_one_unit_in_all_pieces(tmp_path, zone, fraction):
    """Pieces of whole seconds beside one that is not: told in seconds they would lie before all others."""
    second, stamps = 10**6, pa.timestamp("us", zone)
    folder = tmp_path / "in"
    (folder / "interactions.parquet").mkdir(parents=True)
    for k, times in enumerate(([2000 * second, 3000 * second], [10 * second + fraction, 2500 * second])):
        part = {"user": ["u", "u"], "item": [f"{k}a", f"{k}b"], "rating": [5.0, 3.0]}
        rows = pa.table(part | {"time": pa.array(times, stamps)})
        pq.write_table(rows, folder / "interactions.parquet" / f"{k}.parquet")
    ids = ["0a", "0b", "1a", "1b"]
    pq.write_table(pa.table({"item": ids, "title": ids}), folder / "titles.parquet")
    told = []
    made = pack(folder, tmp_path / "out", progress=lambda *done: told.append(done))
    same(made, read(folder))
    assert made.items[made.item_code].tolist() == ["1a", "0a", "1b", "0b"] and told[-1] == (24, 24)


@pytest.mark.parametrize("column", ["user", "time"])
def test_partitions_are_columns(tmp_path, column):
    """As Spark and Hive write them: what stands in the name of a folder is in none of its files."""
    rng = np.random.default_rng(2)
    values = {"user": np.repeat([7, 10, 9], 8), "item": np.tile(np.arange(8), 3)}
    values |= {"rating": rng.integers(1, 6, 24), "time": rng.integers(0, 5, 24)}
    rows, folder = pa.table(values), tmp_path / "in"
    pq.write_to_dataset(rows, folder / "ratings.parquet", partition_cols=[column])
    ids = [str(k) for k in range(8)]
    titles = pa.table({"item": ids, "title": ids})
    pq.write_table(titles, folder / "titles.parquet")
    want = interactions(*(rows[name] for name in values), titles, name="x", source="y")
    data = read(folder)
    same(data, want)
    same(pack(folder, tmp_path / "out"), data)


def in_parts(folder, *parts):
    """Ratings in parts of these columns."""
    (folder / "interactions.parquet").mkdir(parents=True)
    for name, rows in zip(("part-2", "part-10"), parts, strict=True):
        pq.write_table(pa.table(rows), folder / "interactions.parquet" / f"{name}.parquet")
    pq.write_table(pa.table({"item": ["b", "c"], "title": ["B", "C"]}), folder / "titles.parquet")
    return folder


@pytest.mark.parametrize("first", [True, False])
def test_parts_of_different_columns_are_refused(tmp_path, first):
    """One part would say for all whether there are times."""
    timed = {"user": ["u"], "item": ["b"], "rating": [5.0], "time": [9]}
    plain = {"user": ["u"], "item": ["c"], "rating": [5.0]}
    folder = in_parts(tmp_path / "in", *((timed, plain) if first else (plain, timed)))
    for to_do in (lambda: read(folder), lambda: pack(folder, tmp_path / "out")):
        with pytest.raises(DataError, match=r"^interactions.parquet: has parts of different columns. Write"):
            to_do()
    assert not (tmp_path / "out").exists()


def test_parts_without_times_have_no_order(tmp_path):
    """part-10 would come before part-2."""
    rows = [{"user": ["u"], "item": [item], "rating": [5.0]} for item in "bc"]
    folder = in_parts(tmp_path / "in", *rows)
    for to_do in (lambda: read(folder), lambda: pack(folder, tmp_path / "out")):
        with pytest.raises(DataError, match=r"has several parts and no column time. Write the times"):
            to_do()
    none = {name: pa.array([], pa.array(values).type) for name, values in rows[0].items()}
    folder = in_parts(tmp_path / "one", none, rows[0])  # Spark leaves parts without rows
    same(pack(folder, tmp_path / "out"), read(folder))


def test_titles_of_packed_or_public_ratings_are_not_left_out_unsaid(place, tmp_path):
    pq.write_table(DATA.titles, tmp_path / "titles.parquet")
    for to_do in (
        lambda: read(place, titles=tmp_path / "titles.parquet"),
        lambda: pack(place, tmp_path / "out", titles=tmp_path / "titles.parquet"),
        lambda: curerec.load("ml-100k", cache=tmp_path, offline=True, titles=tmp_path / "titles.parquet"),
    ):
        with pytest.raises(DataError, match=r"Leave titles \(--titles\) out"):
            to_do()


def test_it_tells_how_far_it_is(folder, tmp_path):
    told = []
    pack(folder, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(done) and done[0] > 0 and done[-1] == totals[-1] == 5 * len(DATA)
    assert len(set(totals)) == 1


def test_splits_and_requests_are_those_in_memory(made):
    for config in (SplitConfig(), SplitConfig(train=50, other=20, public_share=0.3), SplitConfig(history=3)):
        ours, theirs = split_of(made, config), split_of(DATA, config)
        for name in PARTS:
            for field in ("target", "history", "label"):
                a, b = (getattr(getattr(s, name), field) for s in (ours, theirs))
                np.testing.assert_array_equal(a, b)
        for request in requests() if config.train is None else ():
            a, b = apply_request(made, ours, request), apply_request(DATA, theirs, request)
            for name in ("forget", "retain", *PARTS[1:]):
                np.testing.assert_array_equal(getattr(a, name).history, getattr(b, name).history)
            np.testing.assert_array_equal(a.deleted, b.deleted)


@pytest.mark.parametrize("chunk", [1 << 20, 41])
def test_roles_do_not_depend_on_how_much_is_read_at_a_time(made, chunk):
    split = per_user_split(DATA, seed=3)
    role = per_user_roles(made, seed=3, chunk=chunk)
    for k, name in enumerate(PARTS, start=1):
        np.testing.assert_array_equal(np.flatnonzero(role == k), getattr(split, name).target)


def requests():
    rng = np.random.default_rng(1)
    users = rng.choice(DATA.users, 3, replace=False).tolist()
    items = rng.choice(np.unique(DATA.items[DATA.item_code]), 4, replace=False).tolist()
    rows = rng.choice(len(DATA), 9, replace=False)
    pairs = zip(DATA.users[DATA.user_code[rows]], DATA.items[DATA.item_code[rows]], strict=True)
    return [
        ForgetRequest("users", tuple(users)),
        ForgetRequest("items", tuple(items)),
        ForgetRequest("interactions", tuple(pairs)),
    ]


class Watched(np.ndarray):
    """Counts the elements that are read of it."""

    read = 0

    def __getitem__(self, index):
        out = super().__getitem__(index)
        Watched.read += np.size(out)
        return np.asarray(out)


@pytest.mark.parametrize("request_", requests(), ids=lambda r: r.kind)
def test_a_request_reads_only_its_rows(place, request_):
    fresh = open_packed(place)
    values = vars(fresh)
    for name in ("first", "item_code", "user_code"):
        values[name] = getattr(fresh, name).view(Watched)
    values["item_index"] = tuple(a.view(Watched) for a in fresh.item_index)
    Watched.read = 0
    gone = deleted_rows(fresh, request_)
    np.testing.assert_array_equal(gone, deleted_rows(DATA, request_))
    looked_at = gone.sum()
    if request_.kind == "interactions":  # all rows of a pair's user
        of = dict(zip(DATA.users, np.diff(DATA.first), strict=True))
        looked_at = sum(of[user] for user, _ in request_.ids)
    assert 0 < Watched.read <= looked_at + 4 * len(request_.ids) < len(DATA)


def test_unknown_ids_are_refused_by_their_place(made):
    known = DATA.users[0]
    with pytest.raises(RequestError, match=r"entries 2\)") as seen:
        deleted_rows(made, ForgetRequest("users", (known, "nobody")))
    assert "nobody" not in str(seen.value)
    with pytest.raises(RequestError):
        deleted_rows(made, ForgetRequest("interactions", ((known, "nothing"),)))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-9])
def test_push_against_exact_pagerank(made, tmp_path, tolerance):
    role = per_user_roles(made, seed=3)
    graph = liked_graph_on_disk(made, tmp_path, role == 1, chunk=97)
    walk, n_users = liked_graph(DATA, np.flatnonzero(role == 1)), len(DATA.users)
    degree = np.diff(graph.start)
    for source in (0, n_users - 1, n_users, graph.n - 1):
        exact = personalised_pagerank(walk, np.asarray([source]), n_users=n_users, tol=1e-13)[0]
        nodes, rank = push(graph, source, tolerance=tolerance)
        dense = np.zeros(graph.n)
        dense[nodes] = rank
        assert (dense <= exact + 1e-9).all()
        assert (exact - dense <= tolerance * degree + 1e-9).all()
    assert 0 < len(push(graph, n_users, tolerance=1e-2)[0]) < graph.n


BAD = {
    "no ratings": ({"user": ["a"], "item": ["b"]}, "lacks the column rating"),
    "a pair twice": ({"user": ["a", "a"], "item": ["b", "b"], "rating": [1.0, 2.0]}, "twice"),
    "no user": ({"user": ["a", None], "item": ["b", "c"], "rating": [1.0, 2.0]}, "row 2: user id is missing"),
    "a list of users": ({"user": [["a"]], "item": ["b"], "rating": [1.0]}, "neither text nor whole numbers"),
    "an empty item": ({"user": ["a"], "item": [" "], "rating": [1.0]}, "row 1: item id is empty"),
    "a rating of 7": ({"user": ["a", "b"], "item": ["b", "b"], "rating": [1.0, 7.0]}, "row 2: rating is out"),
    "no title": ({"user": ["a", "a"], "item": ["b", "z"], "rating": [1.0, 1.0]}, "row 2: rates an item"),
    "times elsewhere": (
        {"user": ["a"], "item": ["b"], "rating": [1.0], "Timestamp": [9]},
        r"under another name \(column 4\). Name it time",
    ),
    "no rows": ({"user": [], "item": [], "rating": []}, "no interaction"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused_as_in_memory_and_nothing_is_left(tmp_path, case):
    values, message = BAD[case]
    titles = pa.table({"item": ["b", "c"], "title": ["B", "C"]})
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table(values), folder / "interactions.parquet")
    pq.write_table(titles, folder / "titles.parquet")
    with pytest.raises(DataError, match=message) as packing:
        pack(folder, tmp_path / "out")
    with pytest.raises(DataError) as reading:
        read(folder)
    assert str(packing.value) == str(reading.value) or case in ("a pair twice", "no rows")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["types", "damaged"])
def test_parts_that_do_not_fit_are_refused_and_not_quoted(tmp_path, what):
    """pyarrow says which value it could not read: here somebody's id."""
    folder = tmp_path / "in"
    (folder / "interactions.parquet").mkdir(parents=True)
    users = ([1], ["somebody"]) if what == "types" else (["u"] * 50, ["v"])
    for k, user in enumerate(users):
        rows = {"user": user, "item": ["b"] * len(user), "rating": [5.0] * len(user), "time": [k] * len(user)}
        pq.write_table(pa.table(rows), folder / "interactions.parquet" / f"{k}.parquet")
    if what == "damaged":
        part = folder / "interactions.parquet" / "0.parquet"
        raw = bytearray(part.read_bytes())
        raw[10:60] = bytes(50)
        part.write_bytes(raw)
    pq.write_table(pa.table({"item": ["b"], "title": ["B"]}), folder / "titles.parquet")
    for to_do in (lambda: pack(folder, tmp_path / "out"), lambda: read(folder)):
        with pytest.raises(DataError, match="damaged, or its parts") as refused:
            to_do()
        assert "somebody" not in str(refused.value) and refused.value.__cause__ is None
    assert not (tmp_path / "out").exists()


def test_what_is_no_packed_folder_or_a_damaged_one_is_refused(made, tmp_path):
    with pytest.raises(CurerecError):
        open_packed(tmp_path)
    with pytest.raises(DataError, match="parquet"):
        packing.pack(tmp_path / "none.parquet", DATA.titles, tmp_path / "out", name="x")
    folder = tmp_path / "whole"
    pack_table(DATA, folder)
    (folder / "rating.npy").write_bytes((folder / "rating.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match="damaged"):
        open_packed(folder)
    pack_table(DATA, folder)  # takes the place of an earlier one
    card = json.loads((folder / packed.CARD).read_text())
    (folder / packed.CARD).write_text(json.dumps(card | {"format": "other/1"}))
    with pytest.raises(DataError):
        open_packed(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("x")
    with pytest.raises(CurerecError, match="not an earlier output"):
        pack_table(DATA, tmp_path / "mine")
