"""The record: read, checked, written whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import full_record

from curerec.errors import DataError, StorageError
from curerec.reports.schema import SCHEMA, as_record, plain, read_record, write_record


@pytest.fixture
def full() -> dict[str, Any]:
    return full_record()


def minimal(**more: Any) -> dict[str, Any]:
    return {"schema": SCHEMA, "method": "cure", "metrics": {"original": {}, "cure": {}}, **more}


def test_what_is_written_is_read_back(full: dict[str, Any], tmp_path: Path) -> None:
    path = write_record(full, tmp_path / "record.json")
    record = read_record(path)
    assert record == as_record(full)
    assert write_record(record, tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_written_json_is_canonical(full: dict[str, Any], tmp_path: Path) -> None:
    text = write_record(full, tmp_path / "record.json").read_text()
    data = json.loads(text)
    assert text == json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    shuffled = dict(reversed(full.items()))
    assert write_record(shuffled, tmp_path / "b.json").read_text() == text


def test_every_path_of_the_contract_is_there(full: dict[str, Any], tmp_path: Path) -> None:
    data = json.loads(write_record(full, tmp_path / "record.json").read_text())
    for model in ("original", "retrain", "retrain_2", "npo", "cure"):
        assert {"test_auc", "test_acc", "jsd", "membership_auc", "t_total_s"} <= data["metrics"][model].keys()
    assert {"faithfulness", "size", "modules"} <= data["circuit"].keys()
    assert {"forget", "retain", "shared", "frozen"} <= data["groups"].keys()
    assert {"floor_jsd", "ceiling_jsd", "residual", "request", "versions", "seed"} <= data.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), np.nan])
def test_what_is_not_finite_becomes_null(full: dict[str, Any], tmp_path: Path, value: float) -> None:
    full["metrics"]["cure"]["jsd"] = value
    full["metrics"]["cure"]["some_new_number"] = value
    full["config"]["rate"] = [value]
    full["update"]["trace"][0]["cos_mean"] = value
    text = write_record(full, tmp_path / "record.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    record = read_record(tmp_path / "record.json")
    assert record.metrics["cure"] is not None and record.metrics["cure"].jsd is None
    assert record.config["rate"] == [None]


def test_nan_literals_in_a_foreign_file_are_read_as_null(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    head = '{"schema": "curerec-record/2", "method": "cure", '
    path.write_text(head + '"metrics": {"original": {"jsd": NaN}, "cure": {}}}')
    assert read_record(path).metrics["original"].jsd is None


def test_numpy_values_are_taken() -> None:
    record = as_record(
        minimal(
            seed=np.int64(3), floor_jsd=np.float32(0.5), circuit={"curve": np.array([[0, 0.0], [1, 0.5]])}
        )
    )
    assert record.seed == 3
    assert record.floor_jsd == 0.5
    assert record.circuit.curve == [(0.0, 0.0), (1.0, 0.5)]


def test_parts_that_are_null_read_as_empty() -> None:
    record = as_record(minimal(circuit=None, groups=None, split=None, residual=None, versions=None))
    assert record.circuit.size is None and record.residual == {} and record.split.train is None


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"dataset": {"nmae": "x"}},
        {"seed": "0"},
        {"seed": 1.5},
        {"metrics": {"cure": {}}},
        {"metrics": {"original": {}}},
        {"method": "npo"},
        {"method": "original"},
        {"method": None},
        {"metrics": {"original": {}, "cure": {"test_auc": "0.7"}}},
        {"metrics": {"original": {}, "cure": {"new_number": "text"}}},
        {"metrics": {"original": {}, "cure": {"test_auc": True}}},
        {"circuit": {"modules": "layers.0.mlp"}},
        {"circuit": {"curve": [[1]]}},
        {"groups": {"cells": [{"layer": 0, "module": "q_proj", "head": None, "mystery": 3}]}},
        {"verdict": {"verified": "yes"}},
        {"model": {"kind": "distilled"}},
        {"missing": ["jsd"]},
        {"config": []},
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(minimal() | change))
    with pytest.raises(DataError) as error:
        read_record(path)
    assert str(path) in str(error.value)
    assert next(iter(change)) in str(error.value)
    with pytest.raises(DataError):
        write_record(minimal() | change, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"\x00\x01\xff",
        b"{}",
        b'{"schema": 1}',
        b"[" * 100_000,
        b'{"schema": "curerec-record/1", "method": "cure", "metrics": {"original": {}, "cure": {}}}',
        b'{"schema": "curerec-record/2"}',
    ],
)
def test_files_that_are_no_record(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_record(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DataError):
            read_record(path)


def test_error_messages_quote_no_values(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        as_record(minimal(seed="user-4711"))
    assert "4711" not in str(error.value)


def test_a_config_that_names_people_is_withheld(full: dict[str, Any], tmp_path: Path) -> None:
    full["config"] = {
        "request": {"kind": "users", "ids": ["u-4711", "u-4712"], "n_ids": 2},
        "deep": [{"user_id": 4711}, {"forget_users": ["u-4711"]}],
        "users": 57,
    }
    text = write_record(full, tmp_path / "record.json").read_text()
    assert "4711" not in text and "4712" not in text
    assert read_record(tmp_path / "record.json").config["users"] == 57


def test_values_without_a_json_form_are_refused() -> None:
    with pytest.raises(DataError, match=r"config\.a is a object"):
        as_record(minimal(config={"a": object()}))
    deep: dict[str, Any] = {}
    for _ in range(50_000):
        deep = {"a": deep}
    with pytest.raises(DataError, match="too deeply"):
        as_record(minimal(config=deep))


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    fault: BaseException, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_record(minimal(seed=1), tmp_path / "record.json")

    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(StorageError if isinstance(fault, OSError) else KeyboardInterrupt):
        write_record(minimal(seed=2), path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["record.json"]
    assert read_record(path).seed == 1


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        write_record(minimal(), tmp_path / "absent" / "record.json")


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(_values)
def test_plain_values_always_have_a_json_form(value: Any) -> None:
    text = json.dumps(plain(value), allow_nan=False, ensure_ascii=False)
    assert plain(json.loads(text)) == plain(value)
    text.encode("utf-8")
