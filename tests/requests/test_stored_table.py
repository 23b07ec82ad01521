"""The stored table: mapped, written anew a piece at a time, and nothing of deleted rows is left in it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_store import bytes_under, made_data, made_table

from curerec.data.edited import adding
from curerec.data.forget import deleted_rows, draw_request, without_rows
from curerec.data.table import interactions
from curerec.errors import DataError, RequestError
from curerec.recommender import manifest
from curerec.requests import table as tables
from curerec.requests.engine import _for_retrain
from curerec.requests.table import PARTS, Table
from made_catalogue import PLAIN


def same(a: Table, b: Table) -> None:
    assert a.data.ratings.cast(PLAIN).equals(b.data.ratings.cast(PLAIN))
    assert a.data.titles.equals(b.data.titles) and a.history == b.history
    assert a.data.fingerprint == b.data.fingerprint
    np.testing.assert_array_equal(a.part, b.part)
    for name in ("train", "control", "valid", "test"):
        one, two = getattr(a.split, name), getattr(b.split, name)
        np.testing.assert_array_equal(one.target, two.target)
        np.testing.assert_array_equal(one.history, two.history)


@pytest.mark.parametrize("kind", ["users", "items", "interactions"])
def test_a_retrain_is_judged_on_the_prompts_that_an_update_is(kind):
    """In D_c, too, nothing deleted is in the history of an example about what stays."""
    table = made_table()
    request = draw_request(table.data, table.split, kind=kind, share=0.2)
    deleted = deleted_rows(table.data, request)
    wanted = without_rows(table.data, table.split, deleted, source="request")
    found = _for_retrain(SimpleNamespace(data=table.data, split=table.split), deleted)
    for name in ("forget", "retain", "control", "valid", "test"):
        one, two = getattr(found, name), getattr(wanted, name)
        np.testing.assert_array_equal(one.target, two.target)
        np.testing.assert_array_equal(one.history, two.history)


def test_what_a_retrain_takes_up_shows_nothing_that_is_held_out():
    """Ratings that come in are later than the held-out ones; no training prompt may show these."""
    table = made_table()
    users = [f"usr{k:03d}" for k in range(30) for _ in range(3)]
    items = [f"late{k}" for _ in range(30) for k in range(3)]
    titles = {f"late{k}": f"Late {k}" for k in range(3)}
    late = interactions(users, items, [4.0] * 90, list(range(2000, 2090)), titles, name="late", source="test")
    taken = table.of(adding(table.data, late)).taken_up(control_share=0.2, seed=0)
    split = taken.split
    held = np.r_[split.valid.target, split.test.target]
    own = np.isin(taken.data.user_code[split.train.target], taken.data.user_code[held])
    assert (split.train.target[own] > held.min()).any()  # there are prompts that could
    deleted = taken.rows("users", [("usr007",), ("usr011",)])
    update = without_rows(taken.data, split, deleted, source="request")
    retrain = _for_retrain(SimpleNamespace(data=taken.data, split=split), deleted)
    for part in (split, update, retrain):
        names = ("train",) if part is split else ("forget", "retain")
        for name in (*names, "control"):
            assert not np.isin(getattr(part, name).history, held).any(), name
    np.testing.assert_array_equal(update.retain.history, retrain.retain.history)
    stays = np.isin(split.train.target, update.retain.target)
    np.testing.assert_array_equal(update.retain.history, split.train.history[stays])
    shown = split.test.history[split.test.history >= 0]
    assert np.isin(shown, split.valid.target).any()  # a later question may show an earlier answer


def test_what_is_stored_comes_back(tmp_path):
    table = made_table()
    name = tables.save(table, tmp_path)
    same(tables.load(tmp_path, name), table)
    assert tables.save(tables.load(tmp_path, name), tmp_path) == name  # equal tables have equal names
    assert not [path for path in tmp_path.iterdir() if path.name != name]


def test_a_table_written_without_rows_is_the_one_in_memory(tmp_path):
    table = made_table()
    stored = tables.load(tmp_path, tables.save(table, tmp_path))
    gone = stored.rows("users", [("usr007",), ("usr011",)]) | stored.rows("items", [("itm3",)])
    edited = stored.without(gone, ["itm3"])
    after = tables.load(tmp_path, tables.save(stored, tmp_path, edited))
    same(after, stored.of(edited))
    np.testing.assert_array_equal(after.part, table.part[~gone])
    everything = bytes_under(tmp_path / tables.save(stored, tmp_path, edited))
    assert b"usr007" not in everything and b"usr008" in everything
    assert not after.has("users", [("usr007",)]).any() and not after.has("items", [("itm3",)]).any()
    with pytest.raises(RequestError, match="deletes all data"):
        stored.without(np.ones(len(stored.data), bool))


def test_rows_that_come_in_have_the_part_new(tmp_path):
    table = made_table()
    more = made_data(3, prefix="new")
    after = tables.load(tmp_path, tables.save(table, tmp_path, adding(table.data, more)))
    new = after.part == PARTS.index("new")
    users = after.data.users[after.data.user_code]
    np.testing.assert_array_equal(new, [user.startswith("new") for user in users])
    np.testing.assert_array_equal(after.part[~new], table.part)  # the others in their order, as they were
    same(after, table.of(adding(table.data, more)))


def test_what_a_table_has():
    table = made_table()
    user, item = table.data.ratings["user"][0].as_py(), table.data.ratings["item"][0].as_py()
    never = next(i for i in table.data.items if not table.has("interactions", [(user, i)])[0])
    pairs = [(user, item), (user, never), (user, "none"), ("none", item)]
    assert table.has("interactions", pairs).tolist() == [True, False, False, False]
    assert table.has("users", [(user,), ("none",)]).tolist() == [True, False]
    assert table.has("items", [(item,), ("none",)]).tolist() == [True, False]
    only = table.of(table.without(~table.rows("interactions", [(user, item)])))
    assert only.has("items", [(item,), (never,)]).tolist() == [True, False]  # a title alone is no row


def test_a_table_of_the_format_before_is_read(tmp_path):
    table = made_table()
    stage = tmp_path / "stage"
    stage.mkdir()
    rows = table.data.ratings.cast(PLAIN).append_column("part", pa.array(table.part, pa.int8()))
    rows = rows.replace_schema_metadata({"name": "made", "source": "test"})
    pq.write_table(rows, stage / "ratings.parquet")
    pq.write_table(table.data.titles, stage / "titles.parquet")
    name = manifest.seal(stage)
    stage.rename(tmp_path / name)
    old = tables.load(tmp_path, name)
    same(old, table)
    same(tables.load(tmp_path, tables.save(old, tmp_path)), table)


@pytest.mark.parametrize("file", ["part.npy", "user.npy", "table.json", "titles.parquet"])
@pytest.mark.parametrize("how", ["cut", "gone", "flipped"])
def test_a_damaged_table_is_refused(file, how, tmp_path):
    name = tables.save(made_table(), tmp_path)
    path = tmp_path / name / file
    raw = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(raw[:-3] if how == "cut" else raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(DataError, match="damaged"):
        tables.load(tmp_path, name)
