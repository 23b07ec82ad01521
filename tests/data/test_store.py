"""What is read from disk a piece at a time is what is read into memory at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curerec.data.forget import apply_request, deleted_rows
from curerec.data.graph import liked_graph, personalised_pagerank
from curerec.data.push import liked_graph_on_disk, push
from curerec.data.splits import examples, per_user_split
from curerec.data.store import build, open_store
from curerec.data.store_split import examples_at, resolve, roles
from curerec.errors import CurerecError, DataError, RequestError
from curerec.records import ForgetRequest
from made_catalogue import made_catalogue

DATA = made_catalogue()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    rows = DATA.ratings.take(np.random.default_rng(0).permutation(len(DATA)))
    (folder / "in").mkdir()
    half = len(DATA) // 2
    pq.write_table(rows.slice(0, half), folder / "in" / "a.parquet", row_group_size=50)
    pq.write_table(rows.slice(half), folder / "in" / "b.parquet", row_group_size=50)
    return build(folder / "in", folder / "out", chunk=37, bucket=60)


def test_rows_are_those_of_the_table_in_memory(store):
    assert store.n_rows == len(DATA)
    users, items = store.ids("users").to_pylist(), store.ids("items").to_pylist()
    assert [users[c] for c in store.column("user")] == DATA.ratings["user"].to_pylist()
    assert [items[c] for c in store.column("item")] == DATA.ratings["item"].to_pylist()
    np.testing.assert_array_equal(store.column("rating"), DATA.rating.astype(np.float32))
    np.testing.assert_array_equal(store.column("time"), DATA.time)
    for c in range(store.n_items):
        rows = store.item_rows[store.item_first[c] : store.item_first[c + 1]]
        np.testing.assert_array_equal(rows, np.flatnonzero(store.column("item") == c))


@pytest.mark.parametrize("chunk", [1 << 20, 41])
def test_the_split_is_the_one_in_memory(store, chunk):
    split = per_user_split(DATA, seed=3)
    role = roles(store, seed=3, chunk=chunk)
    for k, name in enumerate(("train", "control", "valid", "test"), start=1):
        part = getattr(split, name)
        np.testing.assert_array_equal(np.flatnonzero(role == k), part.target)
        mine = examples_at(store, np.flatnonzero(role == k))
        np.testing.assert_array_equal(mine.history, part.history)
        np.testing.assert_array_equal(mine.label, part.label)


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


@pytest.mark.parametrize("request_", requests(), ids=lambda r: r.kind)
def test_a_request_touches_exactly_what_it_changes(store, request_):
    touched = resolve(store, request_)
    gone = deleted_rows(DATA, request_)
    np.testing.assert_array_equal(touched.deleted, np.flatnonzero(gone))
    every = np.arange(len(DATA))
    before, after = examples(DATA, every, min_history=0), examples(DATA, every, deleted=gone, min_history=0)
    differs = np.flatnonzero((before.history != after.history).any(1) & ~gone)
    np.testing.assert_array_equal(touched.changed, differs)
    split = per_user_split(DATA, seed=3)
    want = apply_request(DATA, split, request_).retain
    kept = np.setdiff1d(split.train.target, touched.deleted)
    mine = examples_at(store, kept, touched.deleted)
    np.testing.assert_array_equal(mine.target, want.target)
    np.testing.assert_array_equal(mine.history, want.history)


def test_a_request_reads_only_its_rows(store, monkeypatch):
    request = requests()[0]
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, index):
            out = super().__getitem__(index)
            read.append(np.size(out))
            return np.asarray(out)

    plain = type(store).array
    monkeypatch.setattr(type(store), "array", lambda self, name: plain(self, name).view(Watched))
    fresh = open_store(store.path)
    touched = resolve(fresh, request)
    assert 0 < sum(read) < 6 * len(touched.deleted) + 20 < store.n_rows


def test_unknown_ids_are_refused_by_their_place(store):
    known = DATA.users[0]
    with pytest.raises(RequestError, match=r"entries 2\)") as seen:
        resolve(store, ForgetRequest("users", (known, "nobody")))
    assert "nobody" not in str(seen.value)
    with pytest.raises(RequestError):
        resolve(store, ForgetRequest("interactions", ((known, "nothing"),)))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-9])
def test_push_against_exact_pagerank(store, tolerance):
    split = per_user_split(DATA, seed=3)
    role = roles(store, seed=3)
    graph = liked_graph_on_disk(store, role, chunk=97)
    walk = liked_graph(DATA, split.train.target)
    users, items = store.ids("users").to_pylist(), store.ids("items").to_pylist()
    user_at = {u: k for k, u in enumerate(DATA.users)}
    item_at = {i: k for k, i in enumerate(DATA.items)}
    node = np.asarray([user_at[u] for u in users] + [len(DATA.users) + item_at[i] for i in items])
    degree = np.diff(graph.start)
    for source in (0, store.n_users - 1, store.n_users, graph.n - 1):
        exact = personalised_pagerank(walk, np.asarray([node[source]]), n_users=len(DATA.users), tol=1e-13)[
            0
        ][node]
        nodes, rank = push(graph, source, tolerance=tolerance)
        dense = np.zeros(graph.n)
        dense[nodes] = rank
        assert (dense <= exact + 1e-9).all()
        assert (exact - dense <= tolerance * degree + 1e-9).all()
    assert 0 < len(push(graph, store.n_users, tolerance=1e-2)[0]) < graph.n


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="parquet"):
        build(tmp_path / "none.parquet", tmp_path / "out")
    pq.write_table(pa.table({"user": ["a"], "item": ["b"]}), tmp_path / "few.parquet")
    with pytest.raises(DataError, match="lacks"):
        build(tmp_path / "few.parquet", tmp_path / "out")
    twice = pa.table({"user": ["a", "a"], "item": ["b", "b"], "rating": [1.0, 2.0], "time": [1, 2]})
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="twice"):
        build(tmp_path / "twice.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CurerecError):
        open_store(tmp_path)
