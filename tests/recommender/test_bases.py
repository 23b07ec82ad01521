"""Bases of the hub: what is fetched of them is what is opened, and what fails there is told in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForCausalLM

from curerec.errors import FetchError, ModelError
from curerec.recommender import bases
from curerec.recommender.nano import nano_model, nano_tokenizer
from curerec.recommender.safety import check_folder
from curerec.recommender.storage import load_base, write_model

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A base as it is saved, in two files of weights with an index."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = nano_tokenizer(["One Two", "Three"])
    model = nano_model(tokenizer, width=16, mlp=32)
    write_model(model, tokenizer, folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    return folder


@pytest.fixture
def hub(plain, tmp_path, monkeypatch):
    """A repository that holds the same weights in other formats, too, and the hub's client before it."""
    repository = Path(shutil.copytree(plain, tmp_path / "repository"))
    for index, file in (
        ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"),
        ("tf_model.h5.index.json", "tf_model-00001-of-00002.h5"),
        ("flax_model.msgpack.index.json", "flax_model-00001-of-00002.msgpack"),
    ):
        (repository / index).write_text(json.dumps({"weight_map": {"a": file}}))
        (repository / file).write_bytes(b"x")
    snapshot = tmp_path / "snapshots" / COMMIT

    def snapshot_download(name, *, allow_patterns, ignore_patterns=None):
        snapshot.mkdir(parents=True)
        files = [f.name for f in repository.iterdir()]
        for name in filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            shutil.copy(repository / name, snapshot)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return repository


def test_a_repository_of_several_formats_is_fetched_in_the_one_that_is_opened(hub, plain):
    folder = bases.resolve("owner/name")
    assert {f.name for f in folder.iterdir()} == {f.name for f in plain.iterdir()}
    load_base(folder)


def test_indices_that_nobody_reads_are_no_obstacle(hub):
    for file in (f for f in hub.iterdir() if f.suffix in (".bin", ".h5", ".msgpack")):
        file.unlink()
    check_folder(hub, what="base model")
    load_base(hub)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a format"):
        (hub / "pytorch_model.bin").write_bytes(b"x")
        check_folder(hub, what="base model")


def test_what_a_card_says_of_a_base_names_its_configuration_and_the_commit(hub, plain):
    of_hub, of_folder = bases.describe("owner/name", bases.resolve("owner/name")), bases.describe("x", plain)
    assert of_hub.pop("revision") == COMMIT and "revision" not in of_folder
    assert of_hub | {"name": "x"} == of_folder and of_folder.keys() == {"name", "sha256", "config_sha256"}


class ProxyError(Exception):
    """As the clients raise it that the hub's is made of: no OSError."""


@pytest.mark.parametrize("error", [ProxyError("407"), OSError("x"), RuntimeError("client was closed")])
def test_whatever_fails_at_the_hub_is_told_in_a_line(error, monkeypatch):
    def snapshot_download(*args, **more):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(FetchError, match=rf"owner/name: cannot be had.*{type(error).__name__}.*--base"):
        bases.resolve("owner/name")


def test_a_name_that_is_none_is_said_to_be_none():
    with pytest.raises(ModelError, match="is not a hub name"):
        bases.resolve("a/b/c")


def test_memory_that_runs_out_is_no_damaged_base(plain, monkeypatch):
    def full(*args, **more):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_base(plain)
